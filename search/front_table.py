"""The front as a table for the terminal: each point beside the baseline, a bar for each cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.table import Table

from ..objectives.answers import ratio
from ..objectives.evaluation import Evaluation
from ..objectives.front import ParetoFront
from ..objectives.further import seen_from
from ..objectives.objective import quantity_name
from ..objectives.point import Point
from ..objectives.target_fronts import front_targets
from ..objectives.wording import label, legible
from ..objectives.wording import points as change

WIDE = 100
"""Columns of a terminal from which on bars are drawn."""
_BAR = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COSTS = ("size_bytes", "latency_ms", "macs")


def front_table(front: ParetoFront, points: list[Point], width: int = WIDE) -> Table:
    """Points of a front, the baseline first; with several targets a line for each.

    width: of the terminal in columns; below ``WIDE`` the bars are left out and plans are told in
    fewer letters. Bars are as long as the cost is of the baseline's; one that is longer than the
    baseline's ends in ``+``. Points that errors leave alike are named under the table.
    """
    targets = front_targets(front)
    measured = {name for p in points for name in p.values}
    if targets:
        measured = {quantity_name(name) or name for name in measured}
    costs = [n for n in _COSTS if n in measured]
    if "latency_ms" in costs and "macs" not in {o.name for o in front.objectives}:
        costs = [n for n in costs if n != "macs"]
    names = [front.score, *(o.name for o in front.objectives)]
    if targets:
        names = [quantity_name(name) or name for name in names]
    score = names[0]
    told = {score, *costs, "size_ratio", "latency_ratio"}
    others = [n for n in dict.fromkeys(names) if n not in told]
    wide = width >= WIDE
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1) if wide else (0, 1, 0, 0),
        caption=ties(points),
        caption_justify="left",
    )
    table.add_column("trial", justify="right", no_wrap=True)
    if targets:
        table.add_column("target", no_wrap=True)
    table.add_column(label(score), justify="right", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True)
    for name in costs:
        table.add_column(label(name), justify="right", no_wrap=True)
        table.add_column("×", justify="right", no_wrap=True)
        if wide:
            table.add_column("", no_wrap=True, style="cyan")
    for name in others:
        table.add_column(label(name), justify="right")
    table.add_column("what was changed", overflow="fold")
    base = front.baseline
    for head, seen, plan in _lines(targets, "base", base, "unchanged") if base else ():
        cells = [legible(score, seen.values.get(score)), ""]
        for name in costs:
            cells += [legible(name, seen.values.get(name)), "1.00", *[bar(1.0)] * wide]
        cells += [legible(n, seen.values.get(n)) for n in others]
        table.add_row(*head, *cells, plan, style="dim")
    for point in points:
        told_as = point.summary if wide else _short(point.summary)
        for head, seen, plan in _lines(targets, str(point.number), point.evaluation, told_as):
            p = replace(point, evaluation=seen)
            cells = [legible(score, p.values.get(score)), change(front.drop(p))]
            for name in costs:
                share = ratio(front, p, name)
                cells.append(legible(name, p.values.get(name)))
                cells.append("–" if share is None else f"{share:.2f}")
                cells += [bar(share)] * wide
            cells += [legible(n, p.values.get(n)) for n in others]
            table.add_row(*head, *cells, plan)
    return table


def _lines(
    targets: list[str], number: str, evaluation: Evaluation, plan: str
) -> Iterator[tuple[list[str], Evaluation, str]]:
    """A point's lines: the cells that name it, its evaluation as each target has it, its plan. Of
    several targets, only the first names the trial and the plan."""
    if not targets:
        yield [number], evaluation, plan
    for at, target in enumerate(targets):
        first = at == 0
        yield [number * first, target], seen_from(evaluation, target), plan * first


def ties(points: list[Point]) -> str | None:
    """Which of them cannot be told apart: ``"alike within errors: 32 = 96, 9 = 14"``."""
    groups: dict[int, list[str]] = {}
    for p in points:
        if p.tie is not None:
            groups.setdefault(p.tie, []).append(str(p.number))
    alike = [" = ".join(numbers) for numbers in groups.values() if len(numbers) > 1]
    return f"alike within errors: {', '.join(alike)}" if alike else None


def _short(summary: str) -> str:
    """``keep 0.78·int8 19/20·rank 2``: one line of a terminal of 80 columns."""
    return summary.replace(" · ", "·").replace(" layers", "").replace(" layer", "")


def bar(share: float | None) -> str:
    """A share of the baseline as a bar of eight columns: ``0.5`` is ``████``."""
    if share is None:
        return ""
    eighths = round(8 * _BAR * min(max(share, 0.0), 1.0))
    full, rest = divmod(eighths, 8)
    end = "+" if share > 1.005 else _EIGHTHS[rest].strip()
    return ("█" * full + end)[: _BAR + 1]
