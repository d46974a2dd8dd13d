"""Several identical boards as one: a free one does the job, one that vanishes is waited for."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import CandidateError, EnvironmentFault, InputError
from .board import Board, BusyBoard, UnknownModel, Unreachable, Vanished
from .board_answer import ImpossibleAnswer

MOST_LIES = 3  # impossible answers, then a board is not asked again
MOST_DEATHS = 3  # of a board in the middle of one and the same job
MOST_LOSSES = 5  # of a model that the board had a moment ago
FIRST_REST_S, LONGEST_REST_S, BUSY_REST_S = 0.25, 10.0, 0.2
FIRST_GREETING_S = 5.0
T = TypeVar("T")


@dataclass
class _Standing:
    """What is known of one board: when to ask it again, how often it lied, its status."""

    board: Board
    again_at: float = 0.0
    rest_s: float = FIRST_REST_S
    lies: int = 0
    status: dict[str, Any] | None = None


class Boards:
    """Asks boards to do jobs. patience_s: how long all of them may be gone.

    The first board that answers says what they all are: another processor or runtime version is an
    InputError, for its numbers would not be comparable.
    """

    def __init__(self, boards: Sequence[Board], patience_s: float = 300.0) -> None:
        self._standings = [_Standing(board) for board in boards]
        self._patience_s = patience_s
        self._order = random.Random(os.getpid())
        self.status: dict[str, Any] = {}

    def greet(self) -> dict[str, Any]:
        """The status of the boards; each is asked once, so that wrong tokens show at once.

        Raises InputError; EnvironmentFault where not one of them answers within a few seconds.
        """
        end = time.monotonic() + min(FIRST_GREETING_S, self._patience_s)
        while True:
            problems = []
            for standing in self._standings:
                try:
                    self._meet(standing)
                except Unreachable as error:
                    problems.append(str(error))
            if self.status:
                return self.status
            if time.monotonic() > end:
                raise EnvironmentFault("; ".join(problems))
            time.sleep(0.5)

    def do(self, job: Callable[[Board], T], what: str) -> T:
        """What ``job`` gives on the first board that is free.

        A board that vanishes is rested, longer each time, and the job given to another, or to it
        again. Raises EnvironmentFault when none was reached for ``patience_s``, CandidateError
        when ``what`` is being done each time a board dies, and whatever ``job`` raises.
        """
        deaths, losses, alive_at, problem = 0, 0, time.monotonic(), "no board"
        while True:
            willing = [s for s in self._standings if s.lies < MOST_LIES]
            if not willing:
                raise EnvironmentFault(f"no board is left to measure on: {problem}")
            self._order.shuffle(willing)
            for standing in (s for s in willing if s.again_at <= time.monotonic()):
                board = standing.board
                try:
                    self._meet(standing)
                    answer = job(board)
                    standing.lies = 0
                    return answer
                except BusyBoard:
                    alive_at = time.monotonic()
                    self._rest(standing, BUSY_REST_S)
                except UnknownModel:
                    losses += 1
                    if losses > MOST_LOSSES:
                        raise CandidateError(f"{what}: {board.address} cannot keep it") from None
                except ImpossibleAnswer as error:
                    alive_at = time.monotonic()
                    standing.lies += 1
                    problem = f"{board.address}: {error}"
                except InputError as error:  # another token or certificate than at the start
                    standing.lies, problem = MOST_LIES, str(error)
                except Unreachable as error:
                    problem = str(error)
                    standing.status = None
                    board.models.clear()
                    if isinstance(error, Vanished):
                        deaths, alive_at = deaths + 1, time.monotonic()
                    self._rest(standing, standing.rest_s)
                    standing.rest_s = min(2 * standing.rest_s, LONGEST_REST_S)
                if deaths >= MOST_DEATHS:
                    raise CandidateError(f"{what}: a board vanished {deaths} times: {problem}")
            if time.monotonic() - alive_at > self._patience_s:
                raise EnvironmentFault(
                    f"{problem}; nothing was reached for {self._patience_s:g} s: "
                    "bring the board back and run the same command again"
                )
            time.sleep(0.05)

    def _meet(self, standing: _Standing) -> None:
        """Know a board's status before it is given work; it may be another one than before."""
        if standing.status is not None:
            return
        try:
            status = standing.board.status()
        except Vanished as error:  # it had no job yet: an SSH tunnel without its board is like that
            raise Unreachable(str(error)) from error
        standing.rest_s = FIRST_REST_S
        kind = _kind(status)
        if self.status and kind != _kind(self.status):
            raise InputError(
                standing.board.where,
                f"{standing.board.address} is another kind of board: {kind} "
                f"where {_kind(self.status)} is measured on",
                "search on one kind of board at a time",
            )
        standing.status = status
        self.status = self.status or status

    @staticmethod
    def _rest(standing: _Standing, seconds: float) -> None:
        standing.again_at = time.monotonic() + seconds * random.uniform(0.75, 1.25)


def _kind(status: dict[str, Any]) -> str:
    cpu = status.get("cpu")
    cpu = cpu if isinstance(cpu, dict) else {}
    flags = cpu.get("flags")
    shown = ",".join(map(str, flags)) if isinstance(flags, list) else ""
    return f"{cpu.get('model')} ({shown}), onnxruntime {status.get('onnxruntime')}"[:200]
