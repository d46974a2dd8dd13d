"""A bar with the time left for work that takes a while; nothing where nobody looks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

QUIET = "PARETUNE_QUIET"
"""Set in the environment (``paretune --quiet`` does): no progress is shown."""


def quiet() -> bool:
    """Whether progress is not to be shown."""
    return bool(os.environ.get(QUIET))


@contextmanager
def progress_bar(
    title: str, total: int | None = None, console: Console | None = None
) -> Iterator[Callable[..., None]]:
    """A bar on stderr while the block runs; what it gives is called as ``advance(done, total)``.

    Shown in a terminal only, and not where ``--quiet`` was said; it leaves no line behind.
    """
    from rich.console import Console as Terminal
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = console or Terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn())
    hidden = quiet() or not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int, of: int | None = None) -> None:
            bar.update(task, completed=done, total=of if of is not None else total)

        yield advance
