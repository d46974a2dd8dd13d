"""Commands before a search: a first job file, its schema for editors, and what works here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import InputError

app = typer.Typer()


@app.command()
def init(
    model: Annotated[
        str, typer.Option(help="file.py:callable, module:callable or torchvision:NAME.")
    ],
    data: Annotated[
        str, typer.Option(help="Image folder (with train/ and val/, or classes), or a callable.")
    ],
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A .safetensors or .pt file, or torchvision:IMAGENET1K_V1."),
    ] = None,
    model_arg: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="An argument of the callable, NAME=VALUE; may be repeated."),
    ] = None,
    target: Annotated[str, typer.Option(help="Where the model will run.")] = "onnxruntime-cpu",
    out: Annotated[Path, typer.Option(help="The job file to write.")] = Path("job.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a commented job file for a network and its data, and check that it loads."""
    from .starter_file import start_job

    start_job(model, data, weights, target, out, _arguments(model_arg or []), force)


@app.command()
def schema(
    out: Annotated[Optional[Path], typer.Option(help="Write to this file.")] = None,  # noqa: UP045
) -> None:
    """The JSON Schema of job files, with which editors complete and check them."""
    import json

    from .job_schema import MODELINE, editor_schema, write_schema

    if out is None:
        typer.echo(json.dumps(editor_schema(), indent=1))
        return
    write_schema(out)
    typer.echo(f"Wrote {out}. First line of a job file beside it:")
    typer.echo(MODELINE.format(f"./{out.name}"))


@app.command()
def setup(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="litert")],
) -> None:
    """Install what a target needs in an environment of its own: litert's converter (some GB)."""
    if target != "litert":
        problem = f"{target!r} needs no environment of its own"
        raise InputError("TARGET", problem, "only 'litert' does; others come with an extra")
    from ..targets.litert_environment import set_up

    set_up(say=typer.echo)


@app.command()
def doctor() -> None:
    """What is installed, which targets work here, and what to do about what is wrong."""
    from .doctor import run_doctor

    run_doctor()


def _arguments(given: list[str]) -> dict[str, object]:
    """``["depth=20"]`` -> ``{"depth": 20}``, values read as in a job file."""
    from ..tasks.yaml_source import parse_yaml

    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError("--model-arg", f"{text!r} is not NAME=VALUE", "e.g. depth=20")
        found |= parse_yaml(f"{name}: {value}".encode(), "--model-arg")[0]
    return found
