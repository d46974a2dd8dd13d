"""The command line: every command is a few lines over the Python API, kept in ``commands.py`` of
the room that does the work.

Exit codes: 0 ok, 2 bad input, 3 every candidate failed, 4 nothing met the constraints,
5 environment (disk, device, storage), 130 interrupted (resumable).
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

from . import __version__
from .deploy import commands as deploy
from .errors import EnvironmentFault, ParetuneError
from .search import cluster_commands as cluster
from .search import commands as search
from .search import workbench
from .trackers import commands as trackers
from .trackers.progress import QUIET

app = typer.Typer(
    name="paretune",
    help="Find the best ways to make a trained PyTorch network small and fast, and ship one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_state = {"debug": False}
for room in (workbench, search, cluster, deploy, trackers):
    app.add_typer(room.app)


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks of errors.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, only results.")
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colours (or set NO_COLOR).")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    _state["debug"] = debug or bool(os.environ.get("PARETUNE_DEBUG"))
    if quiet:
        os.environ[QUIET] = "1"
    if no_color:
        os.environ["NO_COLOR"] = "1"
    if version:
        typer.echo(__version__)
        raise typer.Exit


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
