"""The text that appears over a point of the picture: all its values against the baseline."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .answers import ratio
from .condition import unit_of
from .objective import QUANTITIES
from .wording import label, legible, points

if TYPE_CHECKING:
    from .front import ParetoFront
    from .point import Point

_RUNGS = {"measure": "measured", "recover": "recovered", "confirm": "confirmed"}
_DERIVED = ("accuracy_drop", "size_ratio", "compression_ratio", "latency_ratio")


def hover(front: ParetoFront, point: Point) -> str:
    """Lines of plotly's small HTML: where the point stands, its plan, its values."""
    is_baseline = point.evaluation == front.baseline
    name = f"trial {point.number}" if point.number >= 0 else "baseline"
    lines = [f"<b>{name}</b> · {_standing(point, is_baseline)}"]
    lines.append(f"<i>{escape(point.summary)}</i>")
    if point.parent is not None:
        lines.append(f"recovered from trial {point.parent}")
    for name in [n for n in QUANTITIES if n in point.values and n not in _DERIVED]:
        lines.append(f"{label(name)}: {_value(front, point, name)}")
    if point.tie is not None:
        lines.append(f"tied within errors with trial {tied_with(front, point)}")
    return "<br>".join(lines)


def tied_with(front: ParetoFront, point: Point) -> str:
    """The trials that it cannot be told apart from: ``"12, 51"``; empty where there are none."""
    if point.tie is None:
        return ""
    tied = [str(p.number) for p in front.points if p.tie == point.tie and p is not point]
    more = f" and {len(tied) - 4} more" if len(tied) > 4 else ""
    return ", ".join(tied[:4]) + more


def _standing(point: Point, is_baseline: bool) -> str:
    words = ["baseline"] if is_baseline else []
    words.append(_RUNGS[point.rung])
    if point.number < 0:
        return words[-1]
    if point.front:
        words.append("on the front")
    elif not point.trusted:
        words.append("incomplete")
    else:
        words.append("dominated" if point.feasible else "outside the constraints")
    return ", ".join(words)


def _value(front: ParetoFront, point: Point, name: str) -> str:
    text = legible(name, point.values[name])
    error = point.errors.get(name)
    if error:
        text += f" ± {_error(name, error)}"
    if name == front.score:
        return f"{text} ({points(front.drop(point))} points)"
    share = ratio(front, point, name)
    if share is None or name in ("loss", "divergence"):
        return text
    return f"{text} ({share:.2f}× baseline)"


def _error(name: str, error: float) -> str:
    unit = unit_of(name)
    if unit == "share":
        return f"{100 * error:.2f}"
    if unit == "bytes":
        return legible(name, error)
    return f"{error:.2g} ms" if unit == "ms" else f"{error:.2g}"
