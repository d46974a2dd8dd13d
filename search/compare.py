"""``paretune compare``: two points of a search, or two searches, as tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError
from ..objectives.comparison import compare_fronts, compare_points
from ..objectives.condition import unit_of
from ..objectives.wording import label, legible
from ..trackers.study import Study

SEARCHED = ("measure", "recover")
_TOLD_BY = {"accuracy_drop": "accuracy", "compression_ratio": "size_ratio"}  # the same twice


def compare(folder: Path, others: Sequence[str], format: str = "table") -> str:
    """Two trials of the study in ``folder`` (two numbers), or that study and another (a folder).

    format: ``table`` or ``json``. Raises InputError on anything else than two numbers or a folder.
    """
    if len(others) == 2 and all(_is_number(word) for word in others):
        return _points(folder, int(others[0]), int(others[1]), format)
    if len(others) == 1 and not _is_number(others[0]):
        return _searches(folder, Path(others[0]), format)
    raise InputError(
        "compare",
        f"cannot compare {' '.join(others)!r}",
        "write `compare DIR A B` for two trials or `compare DIR1 DIR2` for two searches",
    )


def _is_number(word: str) -> bool:
    return word.lstrip("-").isdigit()


def _points(folder: Path, a: int, b: int, format: str) -> str:
    with Study.open(folder) as study:
        front = study.front()
        points = [front[a], front[b]]
        if {p.rung == "confirm" for p in points} == {True, False}:
            searched = {
                r.number: r.evaluation for r in study.rows() if r.evaluation.rung in SEARCHED
            }
            points = [replace(p, evaluation=searched[p.number]) for p in points]
        first, second = points
        found = compare_points(front, first, second)
    data = "evaluation data (confirmed)" if first.rung == "confirm" else "search data"
    if format == "json":
        return json.dumps({"a": a, "b": b, **asdict(found)}, indent=1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", f"A: trial {a}", f"B: trial {b}", "B against A", "better"):
        table.add_column(column, justify="left" if column in ("", "better") else "right")
    told = {row.name for row in found.values}
    for row in found.values:
        if _TOLD_BY.get(row.name) in told:
            continue
        change = row.b - row.a
        words = f"{row.b / row.a:.3f}×" if row.a > 0 and row.b > 0 else f"{change:+.4g}"
        if row.name in ("accuracy", "fidelity", "accuracy_drop"):
            error = f" ± {100 * row.error:.2f}" if row.error else ""
            words = f"{100 * change:+.2f}{error} points"
        beside = ", × baseline" if unit_of(row.name) == "x" else ""
        cells = [
            label(row.name) + beside,
            legible(row.name, row.a),
            legible(row.name, row.b),
            words,
        ]
        table.add_row(*cells, row.better or "–")
    plan = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("what differs", "A", "B"):
        plan.add_column(column)
    for place in found.plan:
        plan.add_row(*place)
    verdict = (
        f"{found.dominates} dominates in the objectives"
        if found.dominates
        else "neither dominates the other in the objectives"
    )
    verdict += "; within the errors they are a tie" if found.tied else ""
    better = (
        "better: where they differ by more than two standard errors (0.1 % without an error); "
        f"values of the {data}"
    )
    return _printed(table, verdict, better, "", plan if found.plan else "the same plan")


def _searches(first: Path, second: Path, format: str) -> str:
    with Study.open(first) as study, Study.open(second) as other:
        fronts = [study.front(), other.front()]
        if any(p.rung != "confirm" for front in fronts for p in front):
            fronts = [study.measured_front(), other.measured_front()]
        found = compare_fronts(*fronts)
        trials = [len(s.rows("measure")) for s in (study, other)]
        samplers = [(s.job.get("search") or {}).get("sampler", "") for s in (study, other)]
    if format == "json":
        return json.dumps({"a": str(first), "b": str(second), **asdict(found)}, indent=1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column(escape(f"A: {first.name}"), justify="right", overflow="fold")
    table.add_column(escape(f"B: {second.name}"), justify="right", overflow="fold")
    table.add_row("trials, sampler", *(f"{n}, {s}" for n, s in zip(trials, samplers, strict=True)))
    for axis in found.axes:
        values = [legible(axis, side.baseline.get(axis)) for side in (found.a, found.b)]
        table.add_row(f"baseline {label(axis).replace('MACs', 'macs').lower()}", *values)
    table.add_row("points on the front", str(found.a.points), str(found.b.points))
    table.add_row("of these beaten by the other", str(found.a.beaten), str(found.b.beaten))
    table.add_row("hypervolume", f"{found.a.hypervolume:.4f}", f"{found.b.hypervolume:.4f}")
    table.add_row("useful region", f"{found.a.useful:.4f}", f"{found.b.useful:.4f}")
    data = "evaluation data (confirmed)" if found.confirmed else "search data"
    note = f"every value over the search's own baseline; {data}"
    warnings = [escape(f"careful: {text}") for text in found.warnings]
    return _printed(table, _verdict(found.a, found.b), note, *warnings)


def _verdict(a: object, b: object) -> str:
    x, y = getattr(a, "hypervolume", 0.0), getattr(b, "hypervolume", 0.0)
    if x == y:
        return "the hypervolumes are equal"
    better, ratio = ("A", x / y if y else 0.0) if x > y else ("B", y / x if x else 0.0)
    times = f" ({ratio:.2f}× the other's)" if ratio else ""
    return f"{better} has the larger hypervolume{times}"


def _printed(*parts: Table | str) -> str:
    console = Console()
    with console.capture() as captured:
        for part in parts:
            console.print(part, highlight=False)
    return str(captured.get())
