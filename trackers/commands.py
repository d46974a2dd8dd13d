"""Commands on a finished study: MLflow brought up to date, and opened."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The study folder.")]
Where = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time
    typer.Option("--where", help='Condition, e.g. "accuracy_drop <= 0.01 and size_ratio < 0.3".'),
]


@app.command()
def sync(
    folder: Folder,
    uri: Annotated[Optional[str], typer.Option(help="MLflow's address.")] = None,  # noqa: UP045
    experiment: Annotated[Optional[str], typer.Option(help="Experiment.")] = None,  # noqa: UP045
) -> None:
    """Bring MLflow up to date with a study (nothing is logged twice)."""
    from .mlflow_tracker import sync as push
    from .study import Study

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
def ui(
    folder: Folder,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow's UI on a study's runs (on this machine only; Ctrl-C ends it)."""
    from .mlflow_ui import ui_command

    command, environment = ui_command(folder, port)
    typer.echo(f"MLflow at http://127.0.0.1:{port} (Ctrl-C to stop)", err=True)
    raise typer.Exit(subprocess.call(command, env=environment))
