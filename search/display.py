"""What a person sees of a running search: a live picture, plain lines, or nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ..errors import InputError, nearest
from ..objectives.answers import conclusion
from ..objectives.wording import label, legible, points, summary
from ..trackers.progress import quiet
from .events import Event
from .front_table import front_table
from .outset import FALLBACK, UNGUIDED

if TYPE_CHECKING:
    from ..objectives.evaluation import Evaluation
    from ..objectives.front import ParetoFront
    from ..trackers.study import Study

DISPLAYS = ("auto", "live", "plain", "quiet")
_ROWS = 6
_FRONT_EVERY_S = 2.0
_FRONT_SHARE = 50  # of the time, at most, is spent on drawing the front: one part in so many
_TRAINING_EVERY_S = 60.0


@dataclass(frozen=True)
class Opening:
    """What is said before the first trial. plans: size of the space; parameters: its dimensions."""

    plans: int
    parameters: int
    sampler: str
    workers: int


class QuietDisplay:
    """Says nothing; the others build on it. Enter it around the search."""

    def __init__(self, study: Study, opening: Opening, console: Console | None = None) -> None:
        self.study, self.opening = study, opening
        self.console = console or Console(stderr=True)

    def __enter__(self) -> QuietDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def on_event(self, event: Event) -> None:
        """Nothing."""


class PlainDisplay(QuietDisplay):
    """One line for each thing that happens: for logs and pipes."""

    def __init__(self, study: Study, opening: Opening, console: Console | None = None) -> None:
        super().__init__(study, opening, console)
        self._training_due: dict[int | None, float] = {}

    def on_event(self, event: Event) -> None:
        """Print it."""
        for line in self.lines(event):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def lines(self, event: Event) -> list[str]:
        """The event in words."""
        evaluation = event.evaluation
        if event.kind == "preparing":
            return [event.note]
        if event.kind == "baseline" and evaluation is not None:
            return self._opening_lines(event, evaluation)
        if event.kind == "resumed":
            return [f"going on: {event.note}"]
        if event.kind == "recovering":
            return [f"winning accuracy back: {event.note}"]
        if event.kind == "training":
            return self._training_lines(event)
        if event.kind in ("trial", "confirmed", "recovered") and evaluation is not None:
            name = "baseline" if event.number is not None and event.number < 0 else "trial"
            number = "" if name == "baseline" else f" {event.number}"
            count = f"[{event.progress.done}/{event.progress.trials}] "
            start = count if event.kind == "trial" else f"{event.kind} "
            return [f"{start}{name}{number}: {self.outcome(evaluation)} ({event.seconds:.1f} s)"]
        if event.kind == "confirming":
            return [f"measuring the front again on the evaluation data: {event.note}"]
        if event.kind == "ended":
            failed = f", {event.progress.failed} failed" if event.progress.failed else ""
            screened = event.progress.screened
            tried = f", {screened} candidates screened" if screened else ""
            done = f"{event.note}: {event.progress.done} trials{failed}{tried}"
            return [done, conclusion(self.study.front())]
        return []

    def outcome(self, evaluation: Evaluation) -> str:
        """``91.20 % (−0.28), 303 kB, 0.410 ms · int8 20/20``, or why it failed."""
        if evaluation.failed:
            return f"failed: {evaluation.cause}"
        values = evaluation.values
        parts = [legible(o.name, values.get(o.name)) for o in self.study.objectives]
        if "accuracy_drop" in values and parts:
            parts[0] += f" ({points(values['accuracy_drop'])})"
        base = self.study.baseline
        return f"{', '.join(parts)} · {summary(evaluation.plan, base.plan if base else None)}"

    def _training_lines(self, event: Event) -> list[str]:
        """One a minute and point."""
        due = self._training_due.get(event.number, 0.0)
        if time.monotonic() < due:
            return []
        self._training_due[event.number] = time.monotonic() + _TRAINING_EVERY_S
        return [f"training {event.number}: {event.note}"]

    def _opening_lines(self, event: Event, baseline: Evaluation) -> list[str]:
        parts = [
            f"{label(o.name).lower()} {legible(o.name, baseline.values.get(o.name))}"
            for o in self.study.objectives
        ]
        opening, left = self.opening, event.progress.trials - event.progress.done
        expected = sum(baseline.seconds.values()) * left / opening.workers
        sampler = opening.sampler if self.study.get(UNGUIDED) is None else FALLBACK
        return [
            f"baseline: {', '.join(parts)}",
            f"space: {number(opening.plans)} plans in {opening.parameters} parameters",
            f"budget: {event.progress.trials} trials, {sampler}, "
            f"{opening.workers} worker{'s' if opening.workers > 1 else ''}; "
            f"about {duration(expected)} for {left} trials",
        ]


class LiveDisplay(PlainDisplay):
    """A bar with the time left, the front so far and the last failure, redrawn in place."""

    def __init__(self, study: Study, opening: Opening, console: Console | None = None) -> None:
        super().__init__(study, opening, console)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._task = self._bar.add_task("baseline", total=None, note="loading and measuring")
        self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
        self._table: RenderableType = Text()
        self._failure = ""
        self._due = 0.0
        self._trainings: dict[int, TaskID] = {}

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __rich__(self) -> RenderableType:
        failure = Text(self._failure, style="red", no_wrap=True, overflow="ellipsis")
        return Group(self._table, failure, self._bar)

    def on_event(self, event: Event) -> None:
        """Redraw; only the opening and the end stay on the screen."""
        progress = event.progress
        if event.kind == "preparing":
            self._bar.update(self._task, note=event.note)
        if event.kind in ("baseline", "resumed"):
            self._say(event)
        if event.kind in ("baseline", "resumed", "trial"):
            left = progress.seconds_left
            note = f"{progress.failed} failed" if progress.failed else ""
            if left is not None and progress.done < progress.trials:
                note = ", ".join(filter(None, [f"about {duration(left)} left", note]))
            self._bar.update(
                self._task,
                description="trials",
                total=progress.trials,
                completed=progress.done,
                note=note,
            )
        if event.kind == "trial" and event.evaluation is not None and event.evaluation.failed:
            self._failure = f"trial {event.number} failed: {event.evaluation.cause}"
        if event.kind == "confirming":
            count = int(event.note.split()[0])
            self._bar.update(
                self._task, description="confirming", total=count, completed=0, note=""
            )
            self._say(event)
        if event.kind == "recovering":
            count = int(event.note.split()[0])
            self._bar.update(
                self._task, description="recovering", total=count, completed=0, note=""
            )
            self._say(event)
        if event.kind == "training":
            self._train(event)
        if event.kind == "recovered" and event.number is not None:
            self._say(event)
            self._bar.advance(self._task)
            if (bar := self._trainings.pop(event.number, None)) is not None:
                self._bar.remove_task(bar)
        if event.kind == "confirmed" and event.number is not None and event.number >= 0:
            self._bar.advance(self._task)
        if event.kind == "ended":
            self._table = Text()
            self.console.print(live_table(self.study.front(), self.console.width))
            self._say(event)
        elif (begin := time.monotonic()) >= self._due:
            self._table = live_table(self.study.front(), self.console.width)
            took = time.monotonic() - begin
            self._due = time.monotonic() + max(_FRONT_EVERY_S, _FRONT_SHARE * took)

    def _train(self, event: Event) -> None:
        """A bar of its own for each training, with the time left."""
        if event.number is None:
            return
        if event.number not in self._trainings:
            self._trainings[event.number] = self._bar.add_task("", total=100, note="")
        self._bar.update(
            self._trainings[event.number],
            description=f"trial {event.number}",
            completed=int(100 * (event.share or 0.0)),
            note=event.note,
        )

    def _say(self, event: Event) -> None:
        for line in self.lines(event):
            self.console.print(escape(line), highlight=False)


def live_table(front: ParetoFront, width: int, rows: int = _ROWS) -> RenderableType:
    """A few points spread along the front, each beside the baseline; empty while there are none."""
    found = list(front)
    if not found:
        return Text()
    if len(found) > rows:
        found = [found[round(i * (len(found) - 1) / (rows - 1))] for i in range(rows)]
    return Group(Text(f"front: {len(front)} points"), front_table(front, found, width))


def number(count: int) -> str:
    """``1,200``, ``3.1 million`` or ``10^36``: how many there are."""
    if count < 10**6:
        return f"{count:,}"
    if count < 10**9:
        return f"{count / 1e6:.1f} million"
    return f"10^{len(str(count)) - 1}"


def duration(seconds: float) -> str:
    """``40 s``, ``9 min``, ``2 h 10 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def make_display(
    kind: str, study: Study, opening: Opening, console: Console | None = None
) -> QuietDisplay:
    """``live``, ``plain``, ``quiet``, or ``auto``: live in a terminal, else plain.

    Raises InputError on another word.
    """
    if kind not in DISPLAYS:
        raise InputError("display", f"unknown display {kind!r}", nearest(kind, DISPLAYS))
    console = console or Console(stderr=True)
    if kind == "auto":
        kind = "quiet" if quiet() else "live" if console.is_terminal else "plain"
    shown = {"live": LiveDisplay, "plain": PlainDisplay, "quiet": QuietDisplay}[kind]
    return shown(study, opening, console)
