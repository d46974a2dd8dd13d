"""The front as a PNG or SVG picture for a paper or a README: drawn without a browser or network."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EnvironmentFault, InputError
from .answers import answer, conclusion
from .axis import Axis, excluded
from .figure import scores, views
from .look import ACCENT, GREY, INK
from .panel import steps, view_title
from .size_classes import UNKNOWN, SizeClass, class_of, size_classes
from .wording import label, legible

if TYPE_CHECKING:
    from .front import ParetoFront
    from .point import Point

FORMATS = ("png", "svg")
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v"}
_INCHES, _DPI = (9.6, 4.3), 160
_AROUND = tuple(
    (along, up)
    for up in (24, 40, -24, -40, 4, 60)
    for along in (-30, 30, -50, 50, 0)
    if up != 4 or along
)  # where a label may stand, the first of the best is taken

Spot = tuple[float, float]


def write_picture(path: str | Path, front: ParetoFront) -> None:
    """Write the picture; the ending of ``path`` says which kind, ``.png`` or ``.svg``.

    Raises InputError on another ending, EnvironmentFault when the disk refuses.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise InputError("--out", f"{path.name!r} is no {' or '.join(FORMATS)}", "name it .png")
    data, temporary = picture(front, kind), ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            temporary = file.name
            file.write(data)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True) if temporary else None
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error


def picture(front: ParetoFront, kind: str = "svg") -> bytes:
    """Accuracy against latency and against size, as :func:`front_figure` draws them.

    kind: ``png``, or ``svg`` (text stays text). The same front gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "paretune"}):
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        _draw(figure, front)
        stream = io.BytesIO()
        kept = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, metadata=kept)
    return stream.getvalue()


def _draw(figure: Any, front: ParetoFront) -> None:
    axes = views(front)
    figure.suptitle(conclusion(front), x=0.01, ha="left", fontsize=12, weight="bold", color=INK)
    panels = figure.subplots(1, max(1, len(axes)), sharey=True, squeeze=False)[0]
    low, high = scores(front)
    room = high - low
    classes = size_classes(front)
    for panel, axis in zip(panels, axes, strict=False):
        panel.set_ylim(100 * (low - 0.04 * room), 100 * (high + 0.12 * room))
        _panel(panel, front, axis, classes)
    panels[0].set_ylabel(f"{label(front.score)}, %", color=INK)
    _legend(figure, front, classes)


def _panel(panel: Any, front: ParetoFront, axis: Axis, classes: list[SizeClass]) -> None:
    score, number = front.score, front.baseline_number
    shown = [p for p in front.points if score in p.values and axis.name in p.values]
    base = front.baseline.values if front.baseline else {}

    def place(p: Point) -> tuple[float, float]:
        return axis.at(p.values[axis.name]), 100 * p.values[score]

    for p in shown:
        if p.front or p.number == number:
            continue
        kind = class_of(front, p, classes)
        if p.feasible and p.trusted:
            colour = kind.colour if kind else UNKNOWN
            marker = _MARKERS[kind.symbol] if kind else "o"
            panel.plot(*place(p), marker, color=colour, ms=4, alpha=0.3, mew=0, zorder=2)
        else:
            panel.plot(*place(p), "x", color=GREY, ms=4, alpha=0.5, mew=0.8, zorder=1)
    best = steps([p for p in shown if p.front], axis, score)
    if best:
        panel.step(*zip(*map(place, best), strict=True), where="post", color=GREY, lw=1, zorder=2)
    for p in shown:
        if not p.front or p.number == number:
            continue
        kind = class_of(front, p, classes)
        panel.errorbar(
            *place(p),
            xerr=axis.at(p.errors.get(axis.name, 0.0)),
            yerr=100 * p.errors.get(score, 0.0),
            marker=_MARKERS[kind.symbol] if kind else "o",
            color=kind.colour if kind else UNKNOWN,
            ecolor=GREY,
            elinewidth=0.9,
            ms=7,
            mec=INK,
            mew=0.5,
            zorder=3,
        )
    if score in base and axis.name in base:
        x, y = axis.at(base[axis.name]), 100 * base[score]
        panel.axhline(y, color=GREY, lw=0.8, ls=":", zorder=1)
        panel.axvline(x, color=GREY, lw=0.8, ls=":", zorder=1)
        panel.plot(x, y, "*", color=ACCENT, ms=13, mec="white", mew=0.6, zorder=4)
        words = f"baseline\n{legible(axis.name, base[axis.name])}"
        left = _along(axis, x) < 0.3
        _note(panel, words, (x, y), (8 if left else -8, -26), ACCENT, "left" if left else "right")
    _excluded(panel, front, axis)
    panel.set_title(view_title(front, axis), loc="left", fontsize=9.5, color=INK)
    panel.set_xlabel(axis.title, color=INK)
    if axis.logarithmic:
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        panel.set_xscale("log")
        ticks = [t for t in axis.settings()["tickvals"] if 0.9 * axis.low < t < 1.1 * axis.high]
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlim(axis.low / 1.07, axis.high * 1.07)
    else:
        panel.set_xlim(*axis.settings()["range"])
    found = answer(front, axis.name)
    if found is not None:
        words, bars = f"trial {found.point.number}", []
        for p in shown:
            (x, y), error = place(p), p.errors if p.front else {}
            dx, dy = axis.at(error.get(axis.name, 0.0)), 100 * error.get(score, 0.0)
            bars.append(((x - dx, y - dy), (x, y), (x + dx, y + dy)))
        at = place(found.point)
        _note(panel, words, at, _free(panel, at, words, bars), INK, "center")
    panel.grid(color=GREY, alpha=0.18, lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(GREY)
    panel.tick_params(colors=INK, labelsize=8.5)


def _along(axis: Axis, x: float) -> float:
    """Where on the axis of the view something is, 0 to 1."""
    ends = [axis.position(end) for end in (axis.low, axis.high)]
    return (axis.position(x) - ends[0]) / max(ends[1] - ends[0], 1e-12)


def _free(panel: Any, at: Spot, words: str, bars: Sequence[tuple[Spot, Spot, Spot]]) -> Spot:
    """Where beside a point its label covers least: points from it, along and up.

    bars: of every sign the lower left end of its error bars, its middle, the upper right end. The
    panel's limits must be set; its size is nearly what the layout will give it.
    """
    width, height = panel.figure.get_size_inches()
    columns = panel.get_subplotspec().get_gridspec().ncols
    size = 72 * np.array([0.88 * width / columns, 0.72 * height])
    places = panel.transScale + panel.transLimits
    lows, spots, highs = (size * places.transform([b[i] for b in bars]) for i in range(3))
    half = np.array([1.8 * len(words) + 3, 7.0])
    start = size * places.transform(at)

    def covered(away: Spot) -> int:
        middle = start + away
        outside = bool(np.any(middle < half) or np.any(middle > size - half))
        signs = np.all(np.abs(spots - middle) < half + 4, axis=1)
        upright = (np.abs(spots - middle)[:, 0] < half[0]) & (
            (lows[:, 1] < middle[1] + half[1]) & (highs[:, 1] > middle[1] - half[1])
        )
        level = (np.abs(spots - middle)[:, 1] < half[1]) & (
            (lows[:, 0] < middle[0] + half[0]) & (highs[:, 0] > middle[0] - half[0])
        )
        along = np.clip((spots - start) @ away / np.dot(away, away), 0, 1)  # nearest on the line
        aside = np.linalg.norm(spots - start - along[:, None] * away, axis=1)
        struck = (aside < 7) & (along > 0)
        return int(1000 * outside + 20 * (signs | struck).sum() + upright.sum() + level.sum())

    return min(_AROUND, key=covered)


def _note(panel: Any, text: str, at: Spot, away: Spot, colour: str, side: str) -> None:
    panel.annotate(
        text, at, away, textcoords="offset points", fontsize=8, color=colour, ha=side, zorder=9,
        va="center",
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6},
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
    )  # fmt: skip


def _excluded(panel: Any, front: ParetoFront, axis: Axis) -> None:
    floor, ceiling = excluded(front, axis)
    low, high = panel.get_ylim()
    if floor is not None:
        panel.axhspan(-100, 100 * floor, color=GREY, alpha=0.13, lw=0, zorder=0)
    if floor is not None and 100 * floor > low + 0.04 * (high - low):
        text = f"excluded: below {legible(front.score, floor)}"
        panel.annotate(
            text, (0.01, 0.0), (0, 4), xycoords="axes fraction",
            textcoords="offset points", fontsize=7.5, color=GREY,
        )  # fmt: skip
    if ceiling is not None:
        panel.axvspan(ceiling, 100 * axis.high, color=GREY, alpha=0.13, lw=0, zorder=0)


def _legend(figure: Any, front: ParetoFront, classes: list[SizeClass]) -> None:
    from matplotlib.lines import Line2D

    signs: list[Any] = [
        Line2D([], [], ls="", marker=_MARKERS[c.symbol], color=c.colour, label=f"size {c.label}")
        for c in classes
    ]
    bars = figure.axes[0].errorbar(
        [], [], xerr=[], yerr=[], fmt="o", color=UNKNOWN, ecolor=GREY, elinewidth=0.9, ms=7,
        mec=INK, mew=0.5, label="large: the front, ± 1 standard error",
    )  # fmt: skip
    signs.append(bars)
    signs.append(Line2D([], [], ls="", marker="o", color=GREY, ms=4, alpha=0.4, label="dominated"))
    if any(not (p.feasible and p.trusted) for p in front.points):
        signs.append(
            Line2D([], [], ls="", marker="x", color=GREY, ms=4, label="misses a constraint")
        )
    figure.legend(
        handles=signs, loc="outside lower left", ncols=len(signs), frameon=False, fontsize=8,
        labelcolor=INK, handletextpad=0.3, columnspacing=1.4,
    )  # fmt: skip
