"""The front as a table: for pandas, CSV, JSON and notebooks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EnvironmentFault
from .objective import QUANTITIES

if TYPE_CHECKING:
    import pandas as pd

    from .front import ParetoFront
    from .point import Point

VERSION = 1
STANDING = ("number", "parent", "rung", "front", "feasible", "trusted", "tie")
MEASURED = (
    "accuracy",
    "accuracy_drop",
    "size_bytes",
    "size_ratio",
    "latency_ms",
    "latency_ratio",
    "macs",
    "params",
)
ERRORS = ("accuracy_error", "accuracy_drop_error", "latency_ms_error", "latency_ratio_error")
PLAN = ("summary", "plan", "sha256")


def data_frame(front: ParetoFront, everything: bool = False) -> pd.DataFrame:
    """A row per point, best first objective first.

    Columns that are always there, in this order: ``number parent rung front feasible trusted tie``;
    the values ``accuracy accuracy_drop size_bytes size_ratio latency_ms latency_ratio macs
    params`` and then any other value that was measured, under its own name; one standard error as
    ``accuracy_error accuracy_drop_error latency_ms_error latency_ratio_error`` and then any other;
    ``summary`` (the plan in one line), ``plan`` (its fingerprint), ``sha256`` (of the file).
    What was not measured is empty.
    """
    import pandas as pd

    shown = _order(front) if everything else list(front.front)
    extra = {name for p in shown for name in p.values} - set(MEASURED)
    known = [name for name in QUANTITIES if name in extra]
    values = [*MEASURED, *known, *sorted(extra - set(known))]
    extra_errors = {f"{name}_error" for p in shown for name in p.errors} - set(ERRORS)
    errors = [*ERRORS, *sorted(extra_errors)]
    rows = []
    for p in shown:
        artifact = p.evaluation.artifact
        row: dict[str, Any] = {name: getattr(p, name) for name in STANDING}
        row |= {name: p.values.get(name) for name in values}
        row |= {name: p.errors.get(name.removesuffix("_error")) for name in errors}
        row |= {"summary": p.summary, "plan": p.plan.fingerprint}
        rows.append(row | {"sha256": artifact.sha256 if artifact else None})
    table = pd.DataFrame(rows, columns=[*STANDING, *values, *errors, *PLAN])
    table = table.astype({name: "float64" for name in [*values, *errors]})
    return table.astype({"number": "int64", "parent": "Int64", "tie": "Int64"})


def _order(front: ParetoFront) -> list[Point]:
    """All points: by the first objective, best first; those without it last."""
    name, up = front.objectives[0].name, front.objectives[0].maximize

    def key(p: Point) -> tuple[bool, float, int]:
        value = p.values.get(name, 0.0)
        return name not in p.values, -value if up else value, p.number

    return sorted(front.points, key=key)


def as_json(front: ParetoFront, everything: bool = False) -> dict[str, Any]:
    """The front as plain JSON, values as measured (no rounding)."""
    shown = _order(front) if everything else list(front.front)
    return {
        "version": VERSION,
        "objectives": [{"name": o.name, "direction": o.direction} for o in front.objectives],
        "constraints": [str(c) for c in front.constraints],
        "baseline": dict(front.baseline.values) if front.baseline else {},
        "hypervolume": front.hypervolume(),
        "hypervolume_useful": front.hypervolume_useful(),
        "points": [
            {
                **{name: getattr(p, name) for name in STANDING},
                "values": dict(p.values),
                "errors": dict(p.errors),
                "summary": p.summary,
                "fingerprint": p.plan.fingerprint,
                "plan": p.plan.to_json(),
                "sha256": p.evaluation.artifact.sha256 if p.evaluation.artifact else None,
            }
            for p in shown
        ],
    }


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all (a temporary beside it, flushed, then renamed).

    Raises EnvironmentFault when the folder or the disk refuses.
    """
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="", dir=path.parent, prefix=".", delete=False
        ) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True) if temporary else None
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error
