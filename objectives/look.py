"""How every picture looks: one typeface, faint grid, no frame, colours that all eyes tell apart."""

from __future__ import annotations

from typing import Any

GREY = "#8b949e"
INK = "#4a525c"
ACCENT = "#d1495b"  # apart from the colour scale for every kind of colour vision
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"  # Okabe and Ito's
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
CLEAR = "rgba(0,0,0,0)"
CARD = "#ffffff"  # under the text that appears over a point
NIGHT = {  # what is lost on a dark page, and what is drawn there instead; apart for every eye
    INK: "#c9d1d9", CARD: "#161b22", BLUE: "#56B4E9",
    "#440154": "#cf9cff", "#443983": "#9d8ff0", "#3b528b": "#5f74d6", "#31688e": "#3f7fb5",
}  # fmt: skip


def style(figure: Any, height: int) -> None:
    """The house's look: no frame, faint grid, one typeface, transparent ground."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 58, "r": 14, "t": 26, "b": 48},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"family": FONT, "size": 13, "color": INK},
        hoverlabel={
            "align": "left",
            "bgcolor": CARD,
            "bordercolor": GREY,
            "font": {"family": FONT, "size": 12.5, "color": INK},
        },
        hovermode="closest",
        modebar={"bgcolor": CLEAR, "color": "rgba(125,133,144,0.6)", "activecolor": BLUE},
    )
    grid = {"gridcolor": "rgba(125,133,144,0.18)", "zeroline": False, "ticks": "outside"}
    line = {"showline": True, "linecolor": GREY, "tickcolor": GREY, "ticklen": 4}
    figure.update_xaxes(**grid, **line, title_standoff=8)
    figure.update_yaxes(**grid, **line, title_standoff=8)


def panel_title(figure: Any, text: str, row: int, col: int) -> None:
    """A title at the left over a panel."""
    figure.add_annotation(
        text=f"<b>{text}</b>",
        x=0,
        xref="x domain",
        xanchor="left",
        y=1,
        yref="y domain",
        yanchor="bottom",
        yshift=8,
        showarrow=False,
        font={"size": 14, "color": INK},
        row=row,
        col=col,
    )
