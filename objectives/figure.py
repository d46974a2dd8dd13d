"""The picture of a front: accuracy against latency and size, and how the hypervolume grew."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .answers import conclusion, ratio
from .axis import axes_of, excluded
from .panel import GREY, INK, draw_panel, panel_title
from .wording import label

if TYPE_CHECKING:
    import pandas as pd

    from .front import ParetoFront

BLUE = "#3b6fa0"
SCALE = "Viridis"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
VISIBLE_LOSS = 0.15  # how far below the baseline's score the first view reaches
TICKS = [0.01, 0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0]


def front_figure(
    front: ParetoFront, history: pd.DataFrame | None = None, title: bool = True
) -> Any:
    """A plotly figure of the front: accuracy against latency, and against size.

    Diamonds: the front, with bars of one standard error; faint circles: dominated; crosses: points
    that miss a constraint (the region it excludes is shaded); star: the baseline. Colour: size over
    the baseline's, on a scale that colour-blind readers can use. Where latency was not measured,
    size and MACs are shown. The first view stays near the baseline; a double click shows all.

    history: as :meth:`ParetoFront.history` gives it; drawn as a panel of its own.
    title: whether the figure carries its conclusion as a title.
    """
    from plotly.subplots import make_subplots

    floor, top = _scores(front)
    shown = [p for p in front.points if floor <= p.values.get(front.score, -1.0)]
    axes = axes_of(front, shown)
    columns = max(1, len(axes))
    grown = history is not None and len(history) > 1
    figure = make_subplots(
        rows=2 if grown else 1,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.2,
        row_heights=[0.76, 0.24] if grown else None,
        column_widths=[0.56, 0.44] if columns == 2 else None,
        specs=[[{}] * columns] + [[{"colspan": columns}] + [None] * (columns - 1)] * grown,
    )
    for column, axis in enumerate(axes, start=1):
        draw_panel(figure, front, axis, column, floor, top)
    if history is not None and grown:
        _growth(figure, history)
    _layout(figure, front, bool(grown), title)
    shares = [share for p in shown if (share := ratio(front, p, "size_bytes"))]
    if shares:
        ends = math.log10(min(shares)), math.log10(max(shares))
        figure.update_layout(coloraxis={"cmin": ends[0], "cmax": max(ends[1], ends[0] + 0.05)})
    return figure


def _scores(front: ParetoFront) -> tuple[float, float]:
    """The scores that the first view spans: within 15 points of the baseline, and not far below
    what the constraints allow."""
    scores = [p.values[front.score] for p in front.points if front.score in p.values]
    base = front.baseline.values.get(front.score) if front.baseline else None
    top = max(scores, default=1.0)
    floor = min(scores, default=0.0)
    if base is not None:
        floor, top = max(floor, base - VISIBLE_LOSS), max(top, base)
    allowed, _ = excluded(front, None)
    if allowed is not None and allowed < top:
        floor = max(floor, allowed - 0.15 * (top - allowed))
    return min(floor, top - 0.005), top


def _growth(figure: Any, history: pd.DataFrame) -> None:
    last = history.iloc[-1]
    top = max(float(history["hypervolume"].max()), float(history["hypervolume_useful"].max()))
    close = last.hypervolume - last.hypervolume_useful < 0.2 * top + 1e-9
    style = {"mode": "lines", "showlegend": False, "row": 2, "col": 1}
    for column, name, width, dash in (
        ("hypervolume", "whole", 2.2, "solid"),
        ("hypervolume_useful", "useful region", 2.2, "dash"),
    ):
        figure.add_scatter(
            x=history["number"],
            y=history[column],
            line={"shape": "hv", "width": width, "dash": dash, "color": BLUE},
            hovertemplate=f"trial %{{x}}: %{{y:.3f}} ({name})<extra></extra>",
            name=name,
            **style,
        )
        figure.add_annotation(
            text=name, x=history["number"].iloc[-1], y=history[column].iloc[-1],
            xanchor="right", yanchor="bottom", showarrow=False,
            xshift=-60 if close and name != "whole" else 0,
            font={"size": 12, "color": BLUE}, row=2, col=1,
        )  # fmt: skip
    text = f"Hypervolume on the search split: {last.hypervolume:.3f} after {len(history)} trials"
    panel_title(figure, f"{text}, useful region {last.hypervolume_useful:.3f}", row=2, col=1)
    step = {"dtick": 1} if len(history) < 12 else {}
    figure.update_xaxes(title_text="trial", **step, row=2, col=1)
    figure.update_yaxes(title_text="share of the box", range=[0, 1.25 * top or 1], row=2, col=1)


def _layout(figure: Any, front: ParetoFront, grown: bool, title: bool) -> None:
    figure.update_layout(
        template="none",
        height=(820 if grown else 600) + 60 * title,
        margin={"l": 70, "r": 110, "t": 90 + 60 * title, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": INK},
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 12.5}},
        hovermode="closest",
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.085,
            "yanchor": "bottom",
            "font": {"size": 12.5},
        },
        coloraxis={
            "colorscale": SCALE,
            "colorbar": {
                "title": {"text": "size, × baseline<br> ", "font": {"size": 12}},
                "thickness": 12,
                "len": 0.62 if grown else 0.8,
                "y": 1,
                "yanchor": "top",
                "x": 1.02,
                "tickvals": [math.log10(tick) for tick in TICKS],
                "ticktext": [f"{tick:g}×" for tick in TICKS],
                "outlinewidth": 0,
            },
        },
    )
    if title:
        text = f"<b>{conclusion(front)}</b>"
        figure.update_layout(
            title={"text": text, "x": 0, "xref": "paper", "font": {"size": 19, "color": INK}}
        )
    grid = {"gridcolor": "rgba(125,133,144,0.18)", "zeroline": False, "ticks": "outside"}
    line = {"showline": True, "linecolor": GREY, "tickcolor": GREY, "ticklen": 4}
    figure.update_xaxes(**grid, **line, title_standoff=8)
    figure.update_yaxes(**grid, **line, title_standoff=8)
    figure.update_yaxes(title_text=f"{label(front.score)}, %", row=1, col=1)
