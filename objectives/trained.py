"""The training of one trial inside a worker: its state, its weights and what is told of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import CandidateError
from ..operators.compress import Compressed
from ..operators.recover import Recovered, recover
from ..operators.train import TrainingProgress
from ..operators.trained_file import write_trained
from ..spaces.plan import CompressionPlan
from ..tasks.job import Job
from ..tasks.recover_section import RecoverSection
from ..tasks.task import Task

FOLDER = "recovery"
WEIGHTS = "safetensors"


@dataclass(frozen=True)
class TrainingPlace:
    """How plans are trained, and where. options: the job's ``recover`` section. folder: the study
    folder. code: the folder of a user's augmentation. threads: for one training on a CPU."""

    options: RecoverSection
    folder: Path
    code: Path | None = None
    threads: int = 1

    @classmethod
    def of(cls, job: Job, folder: Path, threads: int | None = None) -> TrainingPlace:
        """As a job says; threads: by default each worker's share of the machine's cores.

        Where the training will use a GPU, it is woken up here, before memory is capped.
        """
        options = job.recover or RecoverSection()
        if job.recover is not None and options.device != "cpu" and torch.cuda.is_available():
            torch.cuda.init()  # type: ignore[no-untyped-call]
        threads = threads or max(1, len(os.sched_getaffinity(0)) // job.search.workers)
        return cls(options, folder, job.folder, threads)

    def state(self, number: int) -> Path:
        """Where the training of a trial is kept while it goes on."""
        return state_path(self.folder, number)


def state_path(folder: Path, number: int) -> Path:
    """Where the training of a trial of the study in ``folder`` is kept while it goes on."""
    return folder / FOLDER / f"{number}.safetensors"


@dataclass
class Trained:
    """One trial's training. After :meth:`train`: ``notes`` for the record (scores by epoch,
    seconds, and the weights' file)."""

    place: TrainingPlace
    number: int
    tell: Callable[[dict[str, Any]], None] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def train(self, made: Compressed, plan: CompressionPlan, task: Task) -> Compressed:
        """``made`` with trained weights and their grids; the weights are kept as a safetensors file
        of the study too. Raises CandidateError for values that training cannot keep to."""
        place = self.place
        for name, choice in plan.layers.items():
            if choice.quantizer != "uniform":
                raise CandidateError(f"{name}: {choice.quantizer} weights cannot be trained")
        with _threads(place.threads):
            done = recover(
                made,
                task,
                place.options,
                state=place.state(self.number),
                folder=place.code,
                watcher=self._watch if self.tell is not None else None,
            )
        self.notes = {
            "method": place.options.method,
            "weights": vars(store_weights(done, place.folder)),
            "scores": list(done.scores),
            "first_score": done.first_score,
            "best_epoch": done.best_epoch,
            "steps": done.steps,
            "seconds": done.seconds,
        }
        return replace(made, network=done.network, grids=dict(done.grids))

    def _watch(self, progress: TrainingProgress) -> None:
        if self.tell is not None:
            self.tell(asdict(progress))


def store_weights(done: Recovered, folder: Path) -> Any:
    """Keep a trained network's tensors and grids as ``artifacts/<sha256>.safetensors``; the
    Artifact."""
    import hashlib
    import tempfile

    from .evaluation import Artifact

    place = folder / "artifacts"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".export-") as scratch:
        path = Path(scratch) / f"weights.{WEIGHTS}"
        write_trained(path, done.network, done.grids)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        artifact = Artifact(digest, path.stat().st_size, WEIGHTS)
        os.replace(path, place / artifact.file_name)
    return artifact


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
