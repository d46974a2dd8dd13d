"""The picture of which knobs matter: a dot for each, the strongest on top."""

from __future__ import annotations

import math
from typing import Any

from .knobs import FAMILIES, SHOWN, Knobs
from .look import BLUE, GREEN, INK, ORANGE, PURPLE, style

SIGNS = {
    "keep": ("circle", BLUE),
    "bits": ("square", ORANGE),
    "rank": ("diamond", GREEN),
    "zeros": ("triangle-up", PURPLE),
}
_LEAST = 1e-5


def knobs_figure(knobs: Knobs, height: int = 300) -> Any:
    """A plotly figure without a title; the colours and shapes are the families."""
    import plotly.graph_objects as go

    shown = knobs.knobs[:SHOWN]
    figure = go.Figure()
    effects = [max(k.effect, _LEAST) if knobs.logarithmic else k.effect for k in shown]
    for family in dict.fromkeys(k.family for k in shown):
        mine = [i for i, k in enumerate(shown) if k.family == family]
        symbol, colour = SIGNS.get(family, ("circle", INK))
        figure.add_scatter(
            x=[effects[i] for i in mine],
            y=[shown[i].layer + "\u200b" * list(FAMILIES).index(family) for i in mine],
            mode="markers+text",
            marker={"symbol": symbol, "color": colour, "size": 10},
            text=[f" {FAMILIES.get(family, family)} {shown[i].effect:.2g}" for i in mine],
            textposition="middle right",
            textfont={"size": 11, "color": colour},
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
            showlegend=False,
        )
    style(figure, max(height, 60 + 21 * len(shown)))
    order = [k.layer + "\u200b" * list(FAMILIES).index(k.family) for k in shown]
    figure.update_yaxes(
        categoryorder="array", categoryarray=order[::-1], automargin=True, tickfont={"size": 12},
        range=[-0.7, len(shown) - 0.3], ticks="", ticksuffix="  ",
    )  # fmt: skip
    figure.update_xaxes(title_text=knobs.unit, title_font={"size": 12})
    if knobs.logarithmic:
        low, high = math.log10(min(effects)), math.log10(max(effects))
        room = max(high - low, 0.3)
        figure.update_xaxes(type="log", range=[low - 0.06 * room, high + min(0.55 * room, 1.6)])
        steps = (1,) if room > 2 else (1, 2, 5)
        ticks = [step * 10.0**decade for decade in range(-6, 4) for step in steps]
        figure.update_xaxes(tickvals=ticks, tickformat="~g")
    elif effects:
        figure.update_xaxes(range=[0, 1.5 * max(effects) or 1])
    figure.update_layout(margin={"l": 10, "r": 20, "t": 8, "b": 46})
    return figure
