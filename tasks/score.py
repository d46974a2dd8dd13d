"""Scores of predictions: one function for the torch network and for the exported file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CandidateError, InputError
from .task import Examples, Loss, Predict, ScoreResult
from .user_code import last_line

_JUDGED = ("search", "evaluate")  # whole splits; a few of their examples may be of fewer classes


class Top1:
    """Share of examples whose largest output is the label, and the mean loss.

    accuracy has the binomial standard error sqrt(p (1 - p) / n); loss (cross-entropy in nats by
    default) that of a mean over examples.
    """

    name = "accuracy"

    def __init__(self, loss: Loss | None = None) -> None:
        self._loss = loss

    def measure(self, predict: Predict, split: Examples, batch: int = 100) -> ScoreResult:
        answers: list[Tensor] = []
        count = 0
        total = squares = 0.0
        for inputs, targets in split.batches(batch):
            if targets is None or targets.ndim != 1 or targets.is_floating_point():
                raise InputError(
                    "task.score", "accuracy needs class numbers", "use fidelity or your own score"
                )
            outputs = _outputs(predict, inputs)
            if outputs.ndim != 2:
                raise InputError(
                    "task.score",
                    f"accuracy needs outputs (n, classes), got {list(outputs.shape)}",
                    "use fidelity or your own score",
                )
            answers.append(outputs.argmax(1) == targets)
            count += len(inputs)
            if self._loss is None:
                each = F.cross_entropy(outputs, targets, reduction="none").double()
                total += float(each.sum())
                squares += float(each.square().sum())
            else:
                mean = _called(self._loss, "task.loss", outputs, targets)
                total += mean * len(inputs)
        _some(count, split)
        right = torch.cat(answers)
        accuracy, loss = int(right.sum()) / count, total / count
        errors = {"accuracy": math.sqrt(accuracy * (1 - accuracy) / count)}
        if self._loss is None and count > 1:
            variance = max(0.0, squares / count - loss**2) * count / (count - 1)
            errors["loss"] = math.sqrt(variance / count)
        return ScoreResult({"accuracy": accuracy, "loss": loss}, errors, count, right)


class Fidelity:
    """How close the outputs stay to the original network's; no labels needed.

    Classifiers (outputs (n, 3 or more)): fidelity = share of equal predictions, divergence = mean
    KL(original || candidate) of the softmax outputs, nats. Others: divergence = mean squared error,
    fidelity = 1 - divergence / variance of the original's outputs. The original's outputs are
    computed once a split and kept.

    Raises InputError when the original, a classifier, predicts fewer than three classes on a whole
    split: a network that answers one class always would look faithful.
    """

    name = "fidelity"

    def __init__(self, original: Predict, divergence: Loss | None = None) -> None:
        self._original, self._divergence = original, divergence
        self._kept: dict[str, tuple[Examples, Tensor]] = {}

    def measure(self, predict: Predict, split: Examples, batch: int = 100) -> ScoreResult:
        original = self._original_outputs(split, batch)
        classes = original.ndim == 2 and original.shape[1] >= 3
        agreed = count = 0
        total = 0.0
        for inputs, _ in split.batches(batch):
            want = original[count : count + len(inputs)]
            got = _outputs(predict, inputs)
            if got.shape != want.shape:
                raise CandidateError(
                    f"outputs are {list(got.shape)}, the original network's {list(want.shape)}"
                )
            agreed += int((got.argmax(1) == want.argmax(1)).sum()) if classes else 0
            total += self._diverged(want, got, classes) * len(inputs)
            count += len(inputs)
        divergence = total / count
        if classes:
            fidelity = agreed / count
            errors = {"fidelity": math.sqrt(fidelity * (1 - fidelity) / count)}
        else:
            variance = float(original.double().var(correction=0))
            error = divergence if self._divergence is None else self._squared(predict, split, batch)
            fidelity, errors = (1 - error / variance if variance else float(error == 0)), {}
        return ScoreResult({"fidelity": fidelity, "divergence": divergence}, errors, count)

    def _original_outputs(self, split: Examples, batch: int) -> Tensor:
        kept = self._kept.get(split.name)
        if kept is not None and kept[0] is split:
            return kept[1]
        parts = [_outputs(self._original, inputs) for inputs, _ in split.batches(batch)]
        _some(len(parts), split)
        outputs = torch.cat(parts)
        if split.name in _JUDGED and outputs.ndim == 2 and outputs.shape[1] > 1:
            seen = len(torch.unique(outputs.argmax(1)))
            if seen < 3:
                raise InputError(
                    "task.score",
                    f"the original network predicts {seen} of {outputs.shape[1]} classes on "
                    f"{split.name!r}, too few for fidelity to mean anything",
                    "give data with more classes, or labels and score: accuracy",
                )
        self._kept[split.name] = split, outputs
        return outputs

    def _diverged(self, want: Tensor, got: Tensor, classes: bool) -> float:
        """A batch's mean divergence."""
        if self._divergence is not None:
            return _called(self._divergence, "task.divergence", want, got)
        if not classes:
            return float(F.mse_loss(got.double(), want.double()))
        log_want, log_got = (t.double().log_softmax(1) for t in (want, got))
        return float(F.kl_div(log_got, log_want, reduction="batchmean", log_target=True))

    def _squared(self, predict: Predict, split: Examples, batch: int) -> float:
        """Mean squared error, where the divergence is the user's own."""
        plain = Fidelity(self._original)
        plain._kept = self._kept
        return plain.measure(predict, split, batch).values["divergence"]


class Batches:
    """(inputs, targets) batches that can be walked through more than once."""

    def __init__(self, split: Examples, size: int) -> None:
        self._split, self._size = split, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return self._split.batches(self._size)


class CallableScore:
    """A user's ``(predict, batches) -> float``, higher is better; stored as ``accuracy``.

    predict: inputs -> outputs. batches: :class:`Batches` of (inputs, targets).
    """

    name = "accuracy"

    def __init__(self, function: Callable[[Predict, Batches], Any], where: str) -> None:
        self._function, self._where = function, where

    def measure(self, predict: Predict, split: Examples, batch: int = 100) -> ScoreResult:
        try:
            value = self._function(lambda x: _outputs(predict, x), Batches(split, batch))
        except (CandidateError, InputError):
            raise
        except Exception as error:
            raise CandidateError(f"{self._where}: the score raised {last_line(error)}") from error
        return ScoreResult({"accuracy": _scalar(value, self._where)}, {}, len(split))


def _outputs(predict: Predict, inputs: Tensor) -> Tensor:
    """Outputs as float32, one row an input, all finite."""
    outputs = predict(inputs)
    if not isinstance(outputs, Tensor) or outputs.ndim == 0 or len(outputs) != len(inputs):
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise CandidateError(f"outputs are {shape} for {len(inputs)} inputs")
    outputs = outputs.detach().float()
    if not bool(torch.isfinite(outputs).all()):
        raise CandidateError("the outputs hold NaN or infinity")
    return outputs


def _called(function: Loss, where: str, outputs: Tensor, targets: Tensor) -> float:
    """What a user's loss or divergence gives; what it raises becomes one InputError line."""
    try:
        value = function(outputs, targets)
    except Exception as error:
        raise InputError(where, f"it raised {last_line(error)}", "correct it") from error
    return _scalar(value, where)


def _scalar(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise InputError(where, f"it returned a {kind}", "return one number") from error
    if not math.isfinite(number):
        raise CandidateError(f"{where}: it returned {number}")
    return number


def _some(count: int, split: Examples) -> None:
    if not count:
        raise InputError("task.data", f"{split.name!r} holds no examples", "check the data")
