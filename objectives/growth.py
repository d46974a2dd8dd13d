"""How the hypervolume grew with the trials: whether a longer search would have been worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .look import BLUE, ORANGE, panel_title, style

if TYPE_CHECKING:
    import pandas as pd

NEARLY = 0.99


def growth_title(history: pd.DataFrame) -> str:
    """When the search had found nearly all that it found in the end."""
    grown = history["hypervolume"]
    final = float(grown.iloc[-1])
    if final <= 0:
        return f"No point inside the box of the hypervolume after {len(history)} trials"
    nearly = history.loc[grown >= NEARLY * final, "number"].iloc[0]
    found = int((history["number"] <= nearly).sum())
    return f"99 % of the hypervolume after {found} of {len(history)} trials"


def growth_figure(history: pd.DataFrame, height: int = 300) -> Any:
    """The picture of :meth:`ParetoFront.history`, without a title."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=1)
    draw_growth(figure, history, row=1, title=False)
    style(figure, height)
    return figure


def draw_growth(figure: Any, history: pd.DataFrame, row: int, title: bool = True) -> None:
    """Both hypervolumes against the trial's number, labelled where they end."""
    last = history.iloc[-1]
    columns = (
        ("hypervolume", "whole", "solid", BLUE),
        ("hypervolume_useful", "useful region", "dash", ORANGE),
    )
    top = max(float(history[column].max()) for column, *_ in columns)
    close = abs(last.hypervolume - last.hypervolume_useful) < 0.12 * top + 1e-9
    upper = max(columns, key=lambda c: last[c[0]])[0]
    for column, name, dash, colour in columns:
        figure.add_scatter(
            x=history["number"].tolist(),
            y=history[column].tolist(),
            line={"shape": "hv", "width": 2.2, "dash": dash, "color": colour},
            hovertemplate=f"trial %{{x}}: %{{y:.3f}} ({name})<extra></extra>",
            name=name,
            mode="lines",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.add_annotation(
            text=f"{name} {last[column]:.3f}", x=last.number, y=last[column], xanchor="right",
            yanchor="top" if close and column != upper else "bottom", showarrow=False,
            font={"size": 12, "color": colour}, row=row, col=1,
        )  # fmt: skip
    if title:
        panel_title(figure, growth_title(history), row=row, col=1)
    step = {"dtick": 1} if len(history) < 12 else {}
    figure.update_xaxes(title_text="Trial", **step, row=row, col=1)
    figure.update_yaxes(title_text="Hypervolume", range=[0, 1.25 * top or 1], row=row, col=1)
