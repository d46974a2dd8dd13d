"""The command line: every command is a few lines over the Python API.

Exit codes: 0 ok, 2 bad input, 3 every candidate failed, 4 nothing met the constraints,
5 environment (disk, device, storage), 130 interrupted (resumable).
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from . import __version__
from .errors import EnvironmentFault, InputError, ParetuneError

app = typer.Typer(
    name="paretune",
    help="Find the best ways to make a trained PyTorch network small and fast, and ship one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_state = {"debug": False}

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The study folder.")]
Where = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time
    typer.Option("--where", help='Condition, e.g. "accuracy_drop <= 0.01 and size_ratio < 0.3".'),
]


Format = StrEnum("Format", "table csv json html")


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks of errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    _state["debug"] = debug or bool(os.environ.get("PARETUNE_DEBUG"))
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("paretune-quickstart"),
    trials: Annotated[int, typer.Option(min=5, max=500, help="Plans to try.")] = 30,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
) -> None:
    """Embedded demo, no download: train a small CNN, search, show the front, deliver a model."""
    from .search.quickstart import run_quickstart

    run_quickstart(out, trials, workers)


@app.command()
def discover(job: JobFile) -> None:
    """The search space: a row per channel group and layer, and its size."""
    from .objectives.problem import Problem
    from .search.report import print_space
    from .tasks.job import load_job

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
    from .search.report import report_sensitivity

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
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the result.")] = False,
) -> None:
    """Search for the front; an existing study folder is resumed."""
    from .search.report import print_front
    from .search.run import Search

    run = Search(
        job,
        out,
        trials=trials,
        timeout=timeout,
        workers=workers,
        sampler=sampler,
        seed=seed,
        patience=patience,
    )
    with run.run(display="quiet" if quiet else "auto") as study:
        print_front(study.front(), study.folder)


@app.command()
def front(
    folder: Folder,
    where: Where = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    everything: Annotated[bool, typer.Option("--all", help="All measured points.")] = False,
    out: Annotated[Optional[Path], typer.Option(help="Write to this file.")] = None,  # noqa: UP045
) -> None:
    """The Pareto front of a study, as a table, CSV, JSON or an HTML page."""
    from .search.report import front_text
    from .trackers.study import Study

    with Study.open(folder) as study:
        text = front_text(study, where, format.value, everything)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    else:
        typer.echo(text, nl=not text.endswith("\n"))


@app.command()
def pull(
    source: Annotated[str, typer.Argument(metavar="DIR|mlflow:RUN_ID", help="Where from.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write the model to.")],
    where: Where = None,
    best: Annotated[Optional[str], typer.Option(help="Value to be best in.")] = None,  # noqa: UP045
    trial: Annotated[Optional[int], typer.Option(min=-1, help="This trial.")] = None,  # noqa: UP045
    register: Annotated[
        Optional[str], typer.Option(help="Also register it in MLflow under this name.")  # noqa: UP045
    ] = None,
    alias: Annotated[Optional[str], typer.Option(help="Registry alias, e.g. champion.")] = None,  # noqa: UP045
    uri: Annotated[Optional[str], typer.Option(help="MLflow's address.")] = None,  # noqa: UP045
    verify: Annotated[bool, typer.Option(help="Run the file again before delivering.")] = True,
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Also for these runtimes: onnx,openvino,executorch."),
    ] = None,
) -> None:
    """Deliver the chosen point: model, plan, manifest and model card, verified."""
    from .deploy.pull import pull as deliver
    from .search.report import print_bundle

    if alias is not None and register is None:
        raise InputError("--alias", f"{alias!r} needs a registered name", "add --register NAME")
    bundle = deliver(
        source,
        to,
        where=where,
        best=best,
        trial=trial,
        verify=verify,
        register=register,
        alias=alias,
        uri=uri,
        formats=[name.strip() for name in (format or "").split(",") if name.strip()],
    )
    print_bundle(bundle, register, alias)


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan.")],
    job: Annotated[Path, typer.Option(help="The job file: network, weights, data.")],
    to: Annotated[Path, typer.Option("--to", help="Write the weights here (.safetensors).")],
) -> None:
    """Rebuild a plan's compressed torch network and write its weights."""
    from .deploy.apply import apply_plan

    typer.echo(apply_plan(plan, job, to))


@app.command()
def sync(
    folder: Folder,
    uri: Annotated[Optional[str], typer.Option(help="MLflow's address.")] = None,  # noqa: UP045
    experiment: Annotated[Optional[str], typer.Option(help="Experiment.")] = None,  # noqa: UP045
) -> None:
    """Bring MLflow up to date with a study (nothing is logged twice)."""
    from .trackers.mlflow_tracker import sync as push
    from .trackers.study import Study

    with Study.open(folder) as study:
        mlflow = (study.job.get("tracker") or {}).get("mlflow") or {}
        report = push(
            study,
            uri or mlflow.get("uri"),
            experiment or mlflow.get("experiment"),
            mlflow.get("artifacts", "front"),
        )
    typer.echo(report.summary)
    for problem in report.problems:
        typer.echo(f"paretune: {problem}", err=True)


@app.command()
def agent(
    bind: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any free one.")] = 8765,
    token_file: Annotated[
        Optional[Path], typer.Option(help="The shared secret; made if it is not there.")  # noqa: UP045
    ] = None,
    cert: Annotated[Optional[Path], typer.Option(help="TLS certificate (PEM).")] = None,  # noqa: UP045
    key: Annotated[Optional[Path], typer.Option(help="Its key (PEM).")] = None,  # noqa: UP045
    memory_mb: Annotated[int, typer.Option(min=16, help="Memory for one job.")] = 2048,
) -> None:
    """Device agent: time exported models on this machine for searches that run elsewhere."""
    from .agent.main import run_agent

    run_agent(bind, port, token_file, cert, key, memory_mb)


@app.command()
def ui(
    folder: Folder,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow's UI on a study's runs (on this machine only; Ctrl-C ends it)."""
    from .trackers.mlflow_ui import ui_command

    command, environment = ui_command(folder, port)
    typer.echo(f"MLflow at http://127.0.0.1:{port} (Ctrl-C to stop)", err=True)
    raise typer.Exit(subprocess.call(command, env=environment))


def main() -> None:
    """Run the command line; every error of ours is one line on stderr and its exit code."""
    try:
        app(standalone_mode=False)
        code = 0
    except typer.Exit as done:
        code = done.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("paretune: interrupted; run the same command again to go on", file=sys.stderr)
        code = 130
    except ParetuneError as error:
        code = _report(error, error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _report(EnvironmentFault(f"{where}{error.strerror or error}"), 5)
    except Exception as error:
        code = _usage(error)
    sys.stdout.flush()
    sys.exit(code)


def _report(error: BaseException, code: int) -> int:
    if _state["debug"]:
        traceback.print_exc()
    print(f"paretune: {error}", file=sys.stderr)
    return code


def _usage(error: Exception) -> int:
    """Wrong options (click's own errors) are shown with their usage; the rest is a defect."""
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    traceback.print_exc()
    print("paretune: this is a defect in paretune; please report the lines above", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
