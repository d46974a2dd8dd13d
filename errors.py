"""The errors that paretune raises, one tree.

ParetuneError                  every error of ours; ``exit_code`` is what the command line returns
├── InputError          (2)    something the user wrote or named is wrong; nothing was started
├── AllFailedError      (3)    every candidate failed
├── NothingMeetsError   (4)    no measured point meets the constraints; the best so far is reported
├── EnvironmentFault    (5)    disk, device or storage; the study is intact and resumable
└── CandidateError      (1)    one plan could not be carried out; the search records it and goes on

A message reads ``where: what is wrong; what to do``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ParetuneError(Exception):
    """Base of all errors raised on purpose. ``str(error)`` is one line a person can act on."""

    exit_code = 1


class InputError(ParetuneError):
    """Bad input: ``InputError("job.yaml:12", "unknown key 'trails'", "did you mean 'trials'?")``.

    where: the file (and line), the option or the argument that is wrong.
    problem: what is wrong, with the offending value in ``repr`` form.
    remedy: what to do about it.
    """

    exit_code = 2

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.where, self.problem, self.remedy)


class AllFailedError(ParetuneError):
    """Every candidate failed; the message carries the most frequent causes."""

    exit_code = 3


class NothingMeetsError(ParetuneError):
    """No measured point meets the constraints; the message names the nearest one."""

    exit_code = 4


class EnvironmentFault(ParetuneError):
    """The disk, a device or a storage failed; what was acknowledged is kept."""

    exit_code = 5


class CandidateError(ParetuneError):
    """One plan cannot be carried out or measured; recorded as that trial's cause."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'trials'?"`` for the closest known word, else the known words (the first 40
    of them)."""
    names = sorted(str(k) for k in known)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - 40} more" if len(names) > 40 else ""
    return "known: " + (", ".join(names[:40]) or "none") + more
