"""What a running search tells those who watch it: the display, MLflow, a user's own listener."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..objectives.evaluation import Evaluation

KINDS = (
    "preparing",
    "baseline",
    "resumed",
    "trial",
    "confirming",
    "confirmed",
    "recovering",
    "training",
    "recovered",
    "ended",
)


@dataclass(frozen=True)
class Progress:
    """How far a search is. trials: the budget; done: finished trials, failed ones included;
    failed: of these; resumed: finished before this run; seconds: since this run's first trial;
    screened: candidates tried cheaply on the way, which are no trials."""

    trials: int
    done: int = 0
    failed: int = 0
    resumed: int = 0
    seconds: float = 0.0
    screened: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Expected from the pace of this run; None before its first trial."""
        here = self.done - self.resumed
        if here <= 0:
            return None
        return self.seconds / here * max(0, self.trials - self.done)


@dataclass(frozen=True)
class Event:
    """One thing that happened; it is on the disk already.

    kind: ``preparing`` (before the first trial; note: how far),
        ``baseline`` (the identity plan is measured), ``resumed`` (earlier trials were found),
        ``trial`` (one finished, or failed), ``confirming`` (the search is over, the front is
        measured again), ``confirmed`` (one point was), ``recovering`` (points of the front are
        trained now; note: how many), ``training`` (one of them; share: how much of it is done),
        ``recovered`` (one was trained and measured), ``ended`` (note: why).
    number: of the trial. seconds: wall time of the evaluation. note: one line for people.
    """

    kind: str
    progress: Progress
    number: int | None = None
    evaluation: Evaluation | None = None
    seconds: float = 0.0
    note: str = ""
    share: float | None = None


class Listener(Protocol):
    """Hears of everything in order, in the driver's thread: be quick."""

    def on_event(self, event: Event) -> None:
        """Something happened."""
        ...
