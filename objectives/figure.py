"""The picture of a front: accuracy against latency and size, and how the hypervolume grew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .answers import conclusion
from .axis import Axis, axes_of, excluded
from .growth import draw_growth
from .look import ACCENT, GREY, INK, style
from .panel import draw_panel
from .size_classes import size_classes
from .wording import label

if TYPE_CHECKING:
    import pandas as pd

    from .front import ParetoFront

VISIBLE_LOSS = 0.15  # how far below the baseline's score the first view reaches
BELOW_ALLOWED = 0.6  # of the allowed span is shown of what the constraints exclude


def front_figure(
    front: ParetoFront, history: pd.DataFrame | None = None, title: bool = True
) -> Any:
    """A plotly figure of the front: accuracy against latency, and against size.

    Large signs: the front, with bars of one standard error; faint ones: dominated; crosses: points
    that miss a constraint (the region it excludes is shaded); star: the baseline. Colour and shape:
    size over the baseline's, in classes. Where latency was not measured, size and MACs are shown.
    The first view stays near the baseline; a double click shows all.

    history: as :meth:`ParetoFront.history` gives it; drawn as a panel of its own.
    title: whether the figure carries its conclusion as a title.
    """
    from plotly.subplots import make_subplots

    span, axes = scores(front), views(front)
    columns = max(1, len(axes))
    grown = history is not None and len(history) > 1
    figure = make_subplots(
        rows=2 if grown else 1,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.2,
        row_heights=[0.76, 0.24] if grown else None,
        column_widths=[0.54, 0.46] if columns == 2 else None,
        specs=[[{}] * columns] + [[{"colspan": columns}] + [None] * (columns - 1)] * grown,
    )
    for column, axis in enumerate(axes, start=1):
        draw_panel(figure, front, axis, span, column)
    if history is not None and grown:
        draw_growth(figure, history, row=2)
    _legend(figure, front)
    style(figure, height=(820 if grown else 600) + 60 * title)
    figure.update_layout(
        margin={"l": 70, "r": 30, "t": 100 + 60 * title, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 1.085, "yanchor": "bottom"},
    )
    figure.update_yaxes(title_text=f"{label(front.score)}, %", row=1, col=1)
    if title:
        text = f"<b>{conclusion(front)}</b>"
        figure.update_layout(
            title={"text": text, "x": 0, "xref": "paper", "font": {"size": 19, "color": INK}}
        )
    return figure


def view_figure(front: ParetoFront, axis: Axis, height: int = 400) -> Any:
    """One view alone, without a title: accuracy against one cost."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=1)
    draw_panel(figure, front, axis, scores(front), title=False)
    chosen = {"symbol": "circle-open", "size": 24, "color": ACCENT, "line": {"width": 2.5}}
    figure.add_scatter(
        x=[None], y=[None], mode="markers", marker=chosen, hoverinfo="skip", name="chosen",
        showlegend=False,
    )  # fmt: skip
    style(figure, height)
    figure.update_yaxes(title_text=f"{label(front.score)}, %")
    return figure


def views(front: ParetoFront) -> list[Axis]:
    """The costs that the picture shows, at most two."""
    floor, _ = scores(front)
    return axes_of(front, [p for p in front.points if floor <= p.values.get(front.score, -1.0)])


def unseen(front: ParetoFront) -> int:
    """How many measured points lie below the first view."""
    floor, top = scores(front)
    edge = floor - 0.04 * (top - floor)
    return sum(p.values.get(front.score, edge) < edge for p in front.points)


def scores(front: ParetoFront) -> tuple[float, float]:
    """The scores that the first view spans: within 15 points of the baseline, and not far below
    what the constraints allow."""
    found = [p.values[front.score] for p in front.points if front.score in p.values]
    found += [p.values[front.score] + p.errors.get(front.score, 0.0) for p in front]
    base = front.baseline.values.get(front.score) if front.baseline else None
    top = max(found, default=1.0)
    floor = min(found, default=0.0)
    if base is not None:
        floor, top = max(floor, base - VISIBLE_LOSS), max(top, base)
    allowed, _ = excluded(front, None)
    if allowed is not None and allowed < top:
        floor = max(floor, allowed - BELOW_ALLOWED * (top - allowed))
    return min(floor, top - 0.005), top


def _legend(figure: Any, front: ParetoFront) -> None:
    """Signs of the size classes and of the kinds of points, on no data of their own."""
    for kind in size_classes(front):
        sign = {"symbol": kind.symbol, "color": kind.colour, "size": 11}
        _sign(figure, f"size {kind.label}", sign)
    faint = {"symbol": "circle", "color": "rgba(139,148,158,0.4)", "size": 7}
    _sign(figure, "dominated", faint)
    if any(not (p.feasible and p.trusted) for p in front.points):
        cross = {"symbol": "x-thin-open", "color": GREY, "size": 6, "line": {"width": 1}}
        _sign(figure, "outside the constraints, or incomplete", cross)
    _sign(figure, "baseline", {"symbol": "star", "color": ACCENT, "size": 14})


def _sign(figure: Any, name: str, marker: dict[str, Any]) -> None:
    figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=name)
