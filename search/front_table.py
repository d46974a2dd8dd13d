"""The front as a table for the terminal: each point beside the baseline, a bar for each cost."""

from __future__ import annotations

from rich.table import Table

from ..objectives.answers import ratio
from ..objectives.front import ParetoFront
from ..objectives.point import Point
from ..objectives.wording import label, legible
from ..objectives.wording import points as change

WIDE = 100
"""Columns of a terminal from which on bars are drawn."""
_BAR = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COSTS = ("size_bytes", "latency_ms", "macs")


def front_table(front: ParetoFront, points: list[Point], width: int = WIDE) -> Table:
    """Points of a front, the baseline first.

    width: of the terminal in columns; below ``WIDE`` the bars are left out and plans are told in
    fewer letters. Bars are as long as the cost is of the baseline's; one that is longer than the
    baseline's ends in ``+``. Points that errors leave alike are named under the table.
    """
    measured = {name for p in points for name in p.values}
    costs = [n for n in _COSTS if n in measured]
    if "latency_ms" in costs and "macs" not in {o.name for o in front.objectives}:
        costs = [n for n in costs if n != "macs"]
    told = {front.score, *costs, "size_ratio", "latency_ratio"}
    others = [o.name for o in front.objectives if o.name not in told]
    table = Table(
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1) if width >= WIDE else (0, 1, 0, 0),
        caption=ties(points),
        caption_justify="left",
    )
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column(label(front.score), justify="right", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True)
    for name in costs:
        table.add_column(label(name), justify="right", no_wrap=True)
        table.add_column("×", justify="right", no_wrap=True)
        if width >= WIDE:
            table.add_column("", no_wrap=True, style="cyan")
    for name in others:
        table.add_column(label(name), justify="right")
    table.add_column("what was changed", overflow="fold")
    base = front.baseline.values if front.baseline else {}
    cells = ["base", legible(front.score, base.get(front.score)), ""]
    for name in costs:
        cells += [legible(name, base.get(name)), "1.00", *[bar(1.0)] * (width >= WIDE)]
    cells += [legible(n, base.get(n)) for n in others]
    table.add_row(*cells, "unchanged", style="dim")
    for p in points:
        score = legible(front.score, p.values.get(front.score))
        cells = [str(p.number), score, change(front.drop(p))]
        for name in costs:
            share = ratio(front, p, name)
            cells.append(legible(name, p.values.get(name)))
            cells.append("–" if share is None else f"{share:.2f}")
            cells += [bar(share)] * (width >= WIDE)
        cells += [legible(n, p.values.get(n)) for n in others]
        table.add_row(*cells, p.summary if width >= WIDE else _short(p.summary))
    return table


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
