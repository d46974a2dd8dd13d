"""Commands that search, and that show what was found."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..trackers.commands import Folder, Where

app = typer.Typer()

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Format = StrEnum("Format", "table csv json html png svg")
CompareFormat = StrEnum("CompareFormat", "table json")
Best = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Only the point that is best in this value, or `knee`."),
]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("paretune-quickstart"),
    trials: Annotated[int, typer.Option(min=5, max=500, help="Plans to try.")] = 30,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
) -> None:
    """Embedded demo, no download: train a small CNN, search, show the front, deliver a model."""
    from .quickstart import run_quickstart

    run_quickstart(out, trials, workers)


@app.command()
def discover(job: JobFile) -> None:
    """The search space: a row per channel group and layer, and its size."""
    from ..objectives.problem import Problem
    from ..tasks.job import load_job
    from .report import print_space

    print_space(Problem.from_job(load_job(job)).space)


@app.command()
def sensitivity(
    job: JobFile,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a heat map (.html) or the table (.csv)."),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=1, help="Spend at most this many screened candidates.")
    ] = 1000.0,
) -> None:
    """What each single option damages and saves: a table, and a heat map with --out FILE.html."""
    from .report import report_sensitivity

    report_sensitivity(job, out, budget)


@app.command()
def search(
    job: JobFile,
    trials: Annotated[
        Optional[int], typer.Option(min=1, help="Plans to try (default: the job's).")  # noqa: UP045
    ] = None,
    timeout: Annotated[
        Optional[float], typer.Option(min=0.01, help="Stop after this many minutes.")  # noqa: UP045
    ] = None,
    workers: Annotated[
        Optional[int], typer.Option(min=1, max=64, help="Worker processes.")  # noqa: UP045
    ] = None,
    sampler: Annotated[Optional[str], typer.Option(help="guided, nsga2, tpe, gp ...")] = None,  # noqa: UP045
    patience: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Stop when the hypervolume grew by <= 0.1 % over so many trials."),
    ] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="Seed of the sampler.")] = None,  # noqa: UP045
    out: Annotated[
        Optional[Path], typer.Option(help="Study folder; an existing one is resumed.")  # noqa: UP045
    ] = None,
    storage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="postgresql://user@host/database for the study, instead of study.db."),
    ] = None,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ADDRESS", help="Run on this Ray cluster: auto, or host:port."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Search for the front; an existing study folder is resumed."""
    from ..tasks.job import load_job

    checked = load_job(job)
    if ray is not None:  # what follows imports torch
        from .preflight import check_cluster

        check_cluster(ray, checked)
    from .report import print_front
    from .run import Search

    run = Search(
        checked,
        out,
        trials=trials,
        timeout=timeout,
        workers=workers,
        sampler=sampler,
        seed=seed,
        patience=patience,
        storage=storage,
        ray=ray,
    )
    with run.run(display="quiet" if quiet else "auto") as study:
        print_front(study.front(), study.folder)


@app.command()
def recover(
    folder: Folder,
    trial: Annotated[int, typer.Option(min=0, help="The trial that is trained.")],
    epochs: Annotated[Optional[int], typer.Option(min=1, help="At most so many.")] = None,  # noqa: UP045
    minutes: Annotated[Optional[float], typer.Option(min=0.01, help="At most so many.")] = None,  # noqa: UP045
    method: Annotated[Optional[str], typer.Option(help="distil or finetune.")] = None,  # noqa: UP045
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Train one trial of a finished search, measure it again, and put it on the front.

    It becomes a trial of its own. What is not given here comes from the job's `recover` section.
    """
    from .report import print_front
    from .run import Search

    given = {"epochs": epochs, "minutes": minutes, "method": method}
    run = Search(folder / "job.yaml", folder)
    asked = {name: value for name, value in given.items() if value is not None}
    with run.recover_one(trial, "quiet" if quiet else "auto", asked) as study:
        print_front(study.front(), study.folder)


@app.command()
def front(
    folder: Folder,
    where: Where = None,
    best: Best = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    everything: Annotated[bool, typer.Option("--all", help="All measured points.")] = False,
    out: Annotated[Optional[Path], typer.Option(help="Write to this file.")] = None,  # noqa: UP045
) -> None:
    """The Pareto front of a study: a table, CSV, JSON, an HTML page, or a picture.

    The smallest that loses at most half a point: --where "accuracy_drop <= 0.5pt" --best
    size_bytes. The fastest under 300 kB: --where "size_bytes < 300kB" --best latency_ms. The
    balanced choice: --best knee.
    """
    from ..objectives.table import write_whole
    from ..trackers.study import Study
    from .report import front_text, write_front_picture

    with Study.open(folder) as study:
        if format in (Format.png, Format.svg):
            path = out or study.folder / f"front.{format.value}"
            write_front_picture(study, path, format.value, where or best)
            typer.echo(str(path))
            return
        text = front_text(study, where, format.value, everything, best)
    if out is not None:
        write_whole(out, text)
    else:
        typer.echo(text, nl=not text.endswith("\n"))


@app.command()
def compare(
    folder: Folder,
    others: Annotated[
        list[str], typer.Argument(metavar="A B|DIR2", help="Two trials, or another study folder.")
    ],
    format: Annotated[CompareFormat, typer.Option(help="How to print it.")] = CompareFormat.table,
) -> None:
    """Two points of a search side by side, or two searches: hypervolumes, and who beats whom."""
    from .compare import compare as compared

    typer.echo(compared(folder, others, format.value), nl=False)


@app.command()
def report(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    where: Where = None,
    best: Best = None,
) -> None:
    """One HTML file to hand to a colleague: front, layers, hardware, every trial, the job file.

    Paths are cut to file names and secrets are left out. --where and --best choose the point whose
    plan is printed (default: the knee).
    """
    from ..objectives.table import write_whole
    from ..trackers.study import Study
    from ..trackers.study_report import study_report

    with Study.open(folder) as study:
        chosen = study.front().choose(where, best) if where or best else None
        write_whole(out, study_report(study, chosen))
    typer.echo(str(out))
