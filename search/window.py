"""Which ask comes next and which result is told next, so that speed never changes the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import EnvironmentFault
from ..objectives.evaluation import Evaluation
from ..trackers.ask import Ask
from .proposer import Exhausted, Proposer
from .scout import Errand


class Window:
    """A strict window of asks: ``width`` are open, results are told in number order, and each told
    result is followed by exactly one ask.

    Ask n is therefore always made knowing the results 0 ... n - width and no others, whatever the
    order in which candidates finish and wherever the search was interrupted or extended; the price
    is that the slowest candidate of a window can hold up the asks behind it.
    """

    def __init__(self, proposer: Proposer, width: int, limit: int) -> None:
        self.width, self.limit = width, limit
        self.exhausted: str | None = None  # why no further plan can be proposed
        self._proposer = proposer
        scout = proposer.scout
        if scout is not None and scout.width != width:
            raise ValueError(f"the scout counts on {scout.width} open asks, the window has {width}")
        self._told = 0
        self._waiting: dict[int, Evaluation] = {}

    def restore(self, asks: Iterable[Ask], finished: Mapping[int, Evaluation]) -> None:
        """Replay a recorded search: its asks and the results that were recorded, in any order."""
        self._waiting.update(finished)
        for ask in sorted(asks, key=lambda a: a.number):
            if ask.number != self._proposer.next_number:
                raise EnvironmentFault(
                    f"study: trial {self._proposer.next_number} is missing before {ask.number}; "
                    "the file is damaged, restore a copy of it"
                )
            while self._told <= ask.number - self.width and self._told in self._waiting:
                self._tell()
            self._proposer.restore(ask)

    def add(self, number: int, evaluation: Evaluation) -> None:
        """A candidate finished; it is told when all before it have been."""
        self._waiting[number] = evaluation

    def errands(self) -> list[Errand]:
        """What must be screened before the next ask, once there is room for it."""
        asked = self._proposer.next_number
        if asked >= self.limit or self.exhausted is not None:
            return []
        if asked - self._told >= self.width and self._told not in self._waiting:
            return []
        return self._proposer.errands(asked)

    def next(self) -> Ask | None:
        """Tell what has to be told and make the next ask; None while the window is full, while
        candidates are being screened, or when the limit is reached or no plan is left."""
        while (asked := self._proposer.next_number) < self.limit and self.exhausted is None:
            if asked - self._told < self.width:
                if not self._proposer.ready(asked):
                    break  # candidates are being screened for it
                try:
                    return self._proposer.ask(asked)
                except Exhausted as reason:
                    self.exhausted = str(reason)
            elif self._told in self._waiting:
                self._tell()
            else:
                break
        return None

    def _tell(self) -> None:
        self._proposer.tell(self._told, self._waiting.pop(self._told))
        self._told += 1
