"""What a person reads in the terminal: the space and the front."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..errors import InputError, NothingMeetsError
from ..objectives.expression import Expression
from ..objectives.front import ParetoFront
from ..objectives.objective import QUANTITIES
from ..objectives.point import Point
from ..objectives.target_fronts import differences
from ..trackers.progress import progress_bar
from ..trackers.study import Study
from ..trackers.study_page import study_page
from .front_table import front_table

if TYPE_CHECKING:
    from ..spaces.space import SearchSpace

WIDEST = 40
"""Rows of a table in the terminal; ``--format csv`` gives them all."""


def print_space(space: SearchSpace, console: Console | None = None) -> None:
    """The search space, a row per channel group and layer, what is left alone, and its size."""
    console = console or Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("what", "name", "size", "options", "cut together with"):
        table.add_column(column, overflow="fold")
    for row in space.rows():
        table.add_row(row["kind"], row["name"], row["size"], row["options"], row["tied"])
    console.print(table)
    if space.frozen:
        console.print("\n[bold]Left alone[/]")
        for name, reason in space.frozen.items():
            console.print(f"  {name}: {reason}", highlight=False)
    console.print(f"\n{len(space.parameters)} choices, {space.size:.2g} combinations")


def report_sensitivity(job: Path, out: Path | None, budget: float) -> None:
    """Measure what each single option damages, show it, and write ``out`` (.html or .csv).

    Measured options are kept in ``.paretune`` beside the job file; a pass that was interrupted
    goes on from there. Raises InputError on another ending of ``out``.
    """
    from ..objectives.problem import Problem
    from ..objectives.screen import Screen
    from ..objectives.sensitivity import measure
    from ..objectives.sensitivity_page import GAINS, sensitivity_page, sensitivity_rows
    from ..tasks.job import load_job

    if out is not None and out.suffix not in (".html", ".csv"):
        raise InputError("--out", f"unknown kind of file {out.name!r}", "use .html or .csv")
    problem = Problem.from_job(load_job(job))
    folder = job.resolve().parent / ".paretune"
    screen = Screen.for_problem(problem, folder)
    with progress_bar("options") as advance:
        table = measure(screen, budget, folder, advance)
    rows = sensitivity_rows(problem.space, screen.costs, table)
    if out is not None and out.suffix == ".html":
        text = sensitivity_page(problem.space, rows, problem.job.name)
        out.write_text(text, encoding="utf-8")
    elif out is not None:
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    console = Console()
    shown = Table(box=None, header_style="bold", pad_edge=False)
    gains = [g for g in GAINS if g in rows[0]]
    for column in ("layer", "option", "damage", *(f"{GAINS[g]} saved" for g in gains), ""):
        shown.add_column(column, justify="left" if column in ("layer", "option", "") else "right")
    for row in sorted(rows, key=lambda r: r["damage"]):
        saved = (f"{row[g]:.1f} %" for g in gains)
        shown.add_row(row["layer"], row["option"], f"{row['damage']:.5f}", *saved, row["how"])
    console.print(shown)
    console.print(
        f"{len(rows)} options of {len(table.damage)} choices; measured in {table.seconds:.1f} s, "
        f"as much as {table.evaluations:.0f} screened candidates",
        highlight=False,
    )


def print_front(front: ParetoFront, folder: Path, console: Console | None = None) -> None:
    """The front relative to the baseline, and where the files are.

    Raises NothingMeetsError when no measured point meets the constraints.
    """
    console = console or Console()
    if not len(front):
        wanted = " and ".join(str(c) for c in front.constraints)
        front.choose(best=front.objectives[0].name)  # raises, naming the nearest point
        raise NothingMeetsError(f"no measured point meets {wanted}")
    console.print(front_table(front, list(front)[:WIDEST], console.width))
    if len(front) > WIDEST:
        more = f"... and {len(front) - WIDEST} more: paretune front {folder} --format csv"
        console.print(more, soft_wrap=True)
    for line in differences(front):
        console.print(line, highlight=False, markup=False)
    console.print(
        f"hypervolume {front.hypervolume():.4f}, near the baseline "
        f"{front.hypervolume_useful():.4f}; files in {folder}",
        highlight=False,
        soft_wrap=True,
    )


def front_text(
    study: Study,
    where: str | None = None,
    format: str = "table",
    everything: bool = False,
    best: str | None = None,
) -> str:
    """The front in one of the formats ``table``, ``csv``, ``json``, ``html``.

    where: only points that meet it. best: only the point that is best in this value, or the
    ``knee``. Raises InputError on a bad condition, NothingMeetsError when nothing meets it.
    """
    front = study.front()
    if format == "html":
        if where is not None or best is not None:
            raise InputError(
                "--format html", "a page shows every point", "leave --where and --best"
            )
        return study_page(study, profile=True)
    points = _wanted(front, where, everything, best)
    numbers = {p.number for p in points}
    if format == "csv":
        table = front.table(everything or best is not None)
        return str(table[table["number"].isin(numbers)].to_csv(index=False))
    if format == "json":
        data = front.to_json(everything or best is not None)
        data["points"] = [p for p in data["points"] if p["number"] in numbers]
        return json.dumps(data, indent=1)
    console = Console()
    with console.capture() as captured:
        console.print(front_table(front, points, console.width))
        for line in differences(front):
            console.print(line, highlight=False, markup=False)
        if best is not None:
            console.print(
                f"deliver it: paretune pull {study.folder} --trial {points[0].number} --to OUT",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    return str(captured.get())


def _wanted(
    front: ParetoFront, where: str | None, everything: bool, best: str | None
) -> list[Point]:
    if best is not None:
        return [front.choose(where, best)]
    points = list(front.points if everything else front)
    if where is None:
        return points
    condition = Expression.parse(where, "--where", front.names or QUANTITIES)
    points = [p for p in points if condition.holds(p.values)]
    if not points:
        front.choose(where, front.objectives[0].name)  # raises, naming the nearest point
        raise NothingMeetsError(f"no point on the front meets {where!r}; try --all")
    return points


def write_front_picture(study: Study, path: Path, kind: str, narrowed: str | None) -> None:
    """The front as a picture, ``png`` or ``svg``, of every point.

    Raises InputError when the file is named as another kind, or when points are to be left out.
    """
    from ..objectives.static_figure import write_picture

    if narrowed is not None:
        raise InputError(f"--format {kind}", "a picture shows every point", "leave --where, --best")
    if path.suffix.lower() != f".{kind}":
        raise InputError(
            "--out", f"{path.name!r} is no .{kind} file", f"name it {path.stem}.{kind}"
        )
    write_picture(path, study.front())
