"""MLflow as one who watches a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from .events import Event

_WAIT_S = 60.0


class MlflowWatch:
    """Keeps MLflow up to date while the search runs; says in the end what is missing there, and
    what it took of the time since ``begun`` (by ``time.monotonic``)."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], console: Console, begun: float
    ) -> None:
        from ..trackers.mlflow_tracker import MlflowProjector

        self._projector, self._console = MlflowProjector(folder, settings, begun), console

    def on_event(self, event: Event) -> None:
        """A trial finished, or a point was confirmed."""
        if event.number is not None:
            self._projector.notify(event.number)

    def __enter__(self) -> MlflowWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wait_s = _WAIT_S if error is None or isinstance(error, Exception) else 5.0
        for problem in self._projector.close(wait_s):
            self._console.print(problem, markup=False, highlight=False)
        if self._projector.run_id is not None:
            told = f"MLflow run {self._projector.run_id} at {self._projector.uri}"
            if (cost := self._projector.cost) is not None:
                told += (
                    f"; logging took at most {100 * cost.share:.1f} % of {cost.wall_s:.0f} s "
                    f"({cost.processor_s:.1f} s of processor time beside the trials, "
                    f"{cost.waited_s:.1f} s at the end)"
                )
            self._console.print(told, markup=False, highlight=False, soft_wrap=True)
