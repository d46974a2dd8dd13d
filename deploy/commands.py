"""Commands that deliver: a chosen point as a bundle, a plan as a torch network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..trackers.commands import Where

app = typer.Typer()


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="DIR|mlflow:RUN_ID|models:/NAME@ALIAS", help="Where from.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder to write the model to.")],
    where: Where = None,
    best: Annotated[Optional[str], typer.Option(help="Value to be best in.")] = None,  # noqa: UP045
    trial: Annotated[Optional[int], typer.Option(min=-1, help="This trial.")] = None,  # noqa: UP045
    register: Annotated[
        Optional[str], typer.Option(help="Also register it in MLflow under this name.")  # noqa: UP045
    ] = None,
    alias: Annotated[Optional[str], typer.Option(help="Registry alias, e.g. champion.")] = None,  # noqa: UP045
    uri: Annotated[Optional[str], typer.Option(help="MLflow's address.")] = None,  # noqa: UP045
    job: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With mlflow:RUN_ID, your own job file: its network and data are used."),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Run the file again before delivering.")] = True,
    format: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Also for these runtimes: onnx,openvino,executorch,litert."),
    ] = None,
) -> None:
    """Deliver the chosen point: model, plan, manifest and model card, verified.

    An earlier bundle in the folder is replaced in one step, or stays when anything is wrong.
    """
    from .pull import pull as deliver
    from .registered import SCHEME
    from .report import print_bundle

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
        job=job,
        formats=[name.strip() for name in (format or "").split(",") if name.strip()],
    )
    print_bundle(bundle, register, alias, source.startswith(SCHEME))


@app.command()
def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan.")],
    job: Annotated[Path, typer.Option(help="The job file: network, weights, data.")],
    to: Annotated[Path, typer.Option("--to", help="Write the weights here (.safetensors).")],
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Trained tensors of this plan, e.g. a bundle's weights.safetensors."),
    ] = None,
) -> None:
    """Rebuild a plan's compressed torch network and write its weights."""
    from .apply import apply_plan

    typer.echo(apply_plan(plan, job, to, checkpoint))


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The registered model.")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Its version.")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    uri: Annotated[Optional[str], typer.Option(help="MLflow's address.")] = None,  # noqa: UP045
) -> None:
    """Point an alias of the model registry to a version, after checking that version's files."""
    from .alias import promote as move
    from .report import print_move

    print_move(name, move(name, version, alias, uri))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The registered model.")],
    alias: Annotated[str, typer.Option(help="The alias to move.")] = "champion",
    uri: Annotated[Optional[str], typer.Option(help="MLflow's address.")] = None,  # noqa: UP045
) -> None:
    """Point an alias back to the version where it was before."""
    from .alias import rollback as move
    from .report import print_move

    print_move(name, move(name, alias, uri))
