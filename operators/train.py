"""The training loop: batches, steps, checkpoints, and what of it is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CandidateError, InputError
from ..tasks.recover_section import RecoverSection
from ..tasks.task import Task
from .augment import Augment
from .distil import TrainingLoss
from .features import FeatureMatch, Pairs, Taps
from .hardware import Hardware
from .optimiser import make_optimiser
from .schedule import rate_factor
from .training_state import Position, TrainingState

DEFAULT_EPOCHS = 3
SAVE_EVERY_S = 120.0
_TELL_EVERY_S = 0.5


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is. epoch: from 1; epochs: None where only the minutes count; loss: mean
    over the latest steps; score: the latest on the held-out examples; seconds_left: expected."""

    epoch: int
    epochs: int | None
    step: int
    steps_an_epoch: int
    loss: float
    score: float | None
    seconds: float
    seconds_left: float | None


Watcher = Callable[[TrainingProgress], None]


class Training:
    """Trains ``network`` in place on a task's training split, from where ``path`` says it was.

    network: on the CPU. original: what it learns from (only read); None = labels alone.
    Weights that are zero in a sparse layer stay zero.
    A part of the training split is held out and scored after each epoch, so that neither the search
    nor the evaluation data are used up. The last epoch's tensors are the result; with ``patience``
    the best epoch's; the untrained ones where the loss ended no lower than it began. The untrained
    network's held-out score decides nothing: the original learned these examples too, and what is
    cut from it remembers them, up to the first steps of a training.
    Same seed, same inputs: the same tensors, interrupted or not (on one kind of CPU with as many
    threads; budgets in minutes excepted).
    """

    def __init__(
        self,
        network: nn.Module,
        original: nn.Module | None,
        task: Task,
        options: RecoverSection,
        augment: Augment,
        path: Path | None = None,
        key: str = "",
        watcher: Watcher | None = None,
    ) -> None:
        self.network, self.task, self.options = network, task, options
        self._augment, self._watcher = augment, watcher
        self._hardware = Hardware.choose(options.device, options.precision)
        self._epochs = options.epochs
        if options.epochs is None and options.minutes is None:
            self._epochs = DEFAULT_EPOCHS
        pairs = Pairs()
        if original is not None and options.features:
            pairs = Pairs.find(options.features, network, original, task.example)
        match = FeatureMatch(pairs, network, original or network, task.example)
        self._pairs, self._original = pairs, original and self._hardware.place(original, task)
        self._hardware.place(network, task)
        self._match = match.to(self._hardware.device)
        mix = options.mix if original is not None else 0.0
        self._loss = TrainingLoss(mix, options.temperature, task.loss, task.divergence)
        self._held_out, self._rows = self._divided()
        self._batch = min(options.batch, len(self._rows))
        self._an_epoch = len(self._rows) // self._batch
        self._optimiser = make_optimiser(network, self._match, options)
        self._rate = float(self._optimiser.param_groups[0]["lr"])
        self._zeros = [
            (p, p.detach() == 0)
            for p in network.parameters()
            if p.requires_grad and p.ndim > 1 and float((p.detach() == 0).float().mean()) > 0.01
        ]
        self._scaler = torch.amp.GradScaler(
            self._hardware.kind, enabled=self._hardware.dtype is torch.float16
        )
        self._state = TrainingState(path, key)
        self._at = Position()
        self._best: dict[str, Tensor] = {}

    def run(self) -> Position:
        """Train until the budget is spent or patience is lost; the network is left in eval mode
        with the tensors that are kept, on the CPU."""
        begun = time.monotonic()
        untrained = self._tensors()
        found = self._state.load(self._modules(), self._optimiser, self._scaler)
        if found is not None:
            self._at, self._best = found
        before = self._at.seconds
        if self._at.first_score is None:
            self._at.first_score = self._judge()
        saved = begun
        devices = [self._hardware.device] if self._hardware.kind == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            for loss in self._steps() if not self._at.over else ():
                now = time.monotonic()
                self._at.seconds = before + now - begun
                if self._at.first_loss is None:
                    self._at.first_loss = loss
                self._tell(loss)
                if self._at.step % self._an_epoch == 0 or self._time_is_up():
                    self._end_of_epoch(loss)
                    self._at.seconds = before + time.monotonic() - begun
                    self._save()
                    saved = time.monotonic()
                elif now - saved >= SAVE_EVERY_S:
                    self._save()
                    saved = now
                if self._at.over:
                    break
        if self._at.first_loss is not None and self._at.losses[-1] > self._at.first_loss:
            self._at.best_epoch, self._best = 0, untrained
        self.network.load_state_dict(self._best)
        self.network.to("cpu").to(memory_format=torch.contiguous_format).eval()
        return self._at

    def _steps(self) -> Iterator[float]:
        """One optimiser step after another; yields the mean loss of the latest ones."""
        forward = self._hardware.spread(self.network, alone=bool(self._pairs.mine))
        mine = Taps(self.network, self._pairs.mine)
        theirs = Taps(self._original or self.network, self._pairs.theirs)
        losses: list[Tensor] = []
        mean, told = math.nan, 0.0
        try:
            while True:
                epoch, position = divmod(self._at.step, self._an_epoch)
                order = _generator(self.options.seed, epoch, 1)
                rows = self._rows[torch.randperm(len(self._rows), generator=order).numpy()]
                for place in range(position, self._an_epoch):
                    part = rows[place * self._batch : (place + 1) * self._batch]
                    losses.append(self._step(forward, part, mine, theirs))
                    self._at.step += 1
                    last = place == self._an_epoch - 1
                    if last or time.monotonic() - told >= _TELL_EVERY_S:
                        told = time.monotonic()
                        mean = float(torch.stack(losses).mean())
                        losses = losses[-20:]
                        if not math.isfinite(mean):
                            raise CandidateError(
                                f"the training diverged in epoch {epoch + 1} (loss {mean}); "
                                "a smaller recover.lr may help"
                            )
                    yield mean
        finally:
            mine.close()
            theirs.close()

    def _step(self, forward: nn.Module, rows: np.ndarray, mine: Taps, theirs: Taps) -> Tensor:
        at, options = self._at, self.options
        random = _generator(options.seed, at.step, 2)
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=random)))  # dropout
        inputs, targets = self.task.train.take(rows)
        inputs = self._hardware.send(self._augment(inputs, random))
        targets = None if targets is None else targets.to(inputs.device)
        rate = self._rate * rate_factor(options.schedule, self._progress(), options.warmup)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with self._hardware.autocast():
            wanted = None
            if self._original is not None:
                with torch.no_grad():
                    wanted = self._original(inputs)
            outputs = forward(inputs)
        loss = self._loss(outputs, targets, wanted)
        if self._pairs.mine:
            loss = loss + options.feature_weight * self._match(mine.outputs, theirs.outputs)
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimiser)
        self._scaler.update()
        with torch.no_grad():
            for parameter, zero in self._zeros:
                parameter.masked_fill_(zero, 0.0)
        return loss.detach()

    def _progress(self) -> float:
        """Share of the training that is done, by epochs or by minutes, whichever is further."""
        shares = [0.0]
        if self._epochs is not None:
            shares.append(self._at.step / (self._epochs * self._an_epoch))
        if self.options.minutes is not None:
            shares.append(self._at.seconds / (60 * self.options.minutes))
        return min(1.0, max(shares))

    def _time_is_up(self) -> bool:
        minutes = self.options.minutes
        return minutes is not None and self._at.seconds >= 60 * minutes

    def _end_of_epoch(self, loss: float) -> None:
        epoch = -(-self._at.step // self._an_epoch)
        self._at.losses.append(loss)
        patience, score, best = self.options.patience, self._judge(), self._at.best_score
        self._at.scores.append(score)
        if patience is None or best is None or score >= best:
            self._at.best_score, self._at.best_epoch = score, epoch
            self._best = self._tensors()
        tired = patience is not None and epoch - self._at.best_epoch >= patience
        spent = self._epochs is not None and self._at.step >= self._epochs * self._an_epoch
        self._at.over = tired or spent or self._time_is_up()

    def _judge(self) -> float:
        """The network's score on the held-out examples."""
        self.network.eval()
        hardware = self._hardware

        def predict(inputs: Tensor) -> Tensor:
            with torch.no_grad(), hardware.autocast():
                outputs: Tensor = self.network(hardware.send(inputs))
            return outputs.float().cpu()

        result = self.task.score.measure(predict, self._held_out, self._batch)
        return float(result.values[self.task.score.name])

    def _tensors(self) -> dict[str, Tensor]:
        """Copies of the network's, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}

    def _divided(self) -> tuple[Any, np.ndarray]:
        """(held-out split, rows to train on)."""
        train = self.task.train
        count = min(self.options.holdout, len(train) // 10)
        if count < 1 or len(train) - count < 2:
            raise InputError(
                "recover", f"{len(train)} training examples are too few", "give 20 at least"
            )
        order = torch.randperm(len(train), generator=_generator(self.options.seed, 0, 0)).numpy()
        return train.part("holdout", order[:count]), order[count:]

    def _modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "match": self._match}

    def _save(self) -> None:
        scaler = self._scaler.state_dict()
        self._state.save(self._at, self._modules(), self._best, self._optimiser, scaler)

    def _tell(self, loss: float) -> None:
        if self._watcher is None:
            return
        at, done = self._at, self._progress()
        self._watcher(
            TrainingProgress(
                epoch=(at.step - 1) // self._an_epoch + 1,
                epochs=self._epochs,
                step=at.step,
                steps_an_epoch=self._an_epoch,
                loss=loss,
                score=at.scores[-1] if at.scores else at.first_score,
                seconds=at.seconds,
                seconds_left=at.seconds * (1 - done) / done if done else None,
            )
        )


def _generator(seed: int, number: int, stream: int) -> torch.Generator:
    """Random numbers that depend on nothing but these three."""
    words = np.random.SeedSequence((seed, number, stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
