"""Commands that run searches as jobs on a Ray cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer()

Address = Annotated[
    str,
    typer.Option(envvar="PARETUNE_CLUSTER", help="The cluster's Jobs API, e.g. https://head:8265."),
]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Allow http:// beyond this machine.")]
WithoutToken = Annotated[
    bool, typer.Option("--without-token", help="The cluster was started without a token.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `submit` printed it.")]
_LOCAL = "http://127.0.0.1:8265"


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")],
    address: Address = _LOCAL,
    trials: Annotated[Optional[int], typer.Option(min=1, help="Plans to try.")] = None,  # noqa: UP045
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=64, help="Workers on the cluster."),
    ] = None,
    out: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Study folder on the cluster (default: ~/paretune/NAME of its head)."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it prints, to its end.")
    ] = False,
    plain_http: PlainHttp = False,
    without_token: WithoutToken = False,
) -> None:
    """Run a search as a job on a Ray cluster; prints the job's id.

    The job file, the code it names and its weights travel; its data must be on the cluster.
    """
    from .submission import submit_search

    service, job_id = submit_search(
        job, address, trials, workers, out, not without_token, plain_http
    )
    typer.echo(job_id)
    if not follow:
        typer.echo(f"see what it prints: paretune logs {job_id} --follow", err=True)
    else:
        for text in service.logs(job_id, follow=True):
            sys.stdout.write(text)
            sys.stdout.flush()
        status = service.status(job_id)
        raise typer.Exit(0 if status == "SUCCEEDED" else 5)


@app.command()
def status(
    job_id: JobId,
    address: Address = _LOCAL,
    plain_http: PlainHttp = False,
    without_token: WithoutToken = False,
) -> None:
    """What a submitted search is at: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    from .service import Service

    service = Service(address, not without_token, plain_http)
    state = service.status(job_id)
    typer.echo(f"{state}  {service.message(job_id)}".rstrip())


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="To its end.")] = False,
    address: Address = _LOCAL,
    plain_http: PlainHttp = False,
    without_token: WithoutToken = False,
) -> None:
    """What a submitted search printed."""
    from .service import Service

    for text in Service(address, not without_token, plain_http).logs(job_id, follow):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command()
def stop(
    job_id: JobId,
    address: Address = _LOCAL,
    plain_http: PlainHttp = False,
    without_token: WithoutToken = False,
) -> None:
    """End a submitted search; submitting it again with the same --out goes on with it."""
    from .service import Service

    stopped = Service(address, not without_token, plain_http).stop(job_id)
    typer.echo("stopping" if stopped else "it had ended")


@app.command("list")
def list_jobs(
    address: Address = _LOCAL,
    plain_http: PlainHttp = False,
    without_token: WithoutToken = False,
) -> None:
    """The searches that were submitted to a cluster, the latest first."""
    from datetime import datetime

    from .service import Service

    rows = Service(address, not without_token, plain_http).jobs()
    if not rows:
        typer.echo(f"no search was submitted to {address}", err=True)
    for row in rows:
        begin = datetime.fromtimestamp(row["begin"]).strftime("%Y-%m-%d %H:%M:%S")
        typer.echo(f"{row['id']}  {row['status']:9}  {begin}  {row['name']}")
