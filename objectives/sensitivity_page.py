"""The sensitivity table for people: rows, and one HTML page with a heat map."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from ..spaces.space import SearchSpace
from .costs import CostModel
from .look import style
from .page import page_file
from .sensitivity import FLOOR, Sensitivity

# The text of the picture is as light or dark as the page; plotly writes one colour into it.
_TEXT = ".xtick text, .ytick text, .cbaxis text, .cbtitle text { fill: var(--ink) !important; }"

GAINS = {"size_bytes": "bytes", "macs": "MACs", "latency_ms": "latency"}


def option_label(space: SearchSpace, parameter: str, option: int) -> str:
    """An option in words: ``keep 12``, ``w8a8``, ``rank 0.5``."""
    family, _, name = parameter.partition(":")
    if family == "keep":
        return f"keep {space.keeps[name][option]}"
    layer = next(x for x in space.layers if x.name == name)
    if family == "bits":
        return "w{}a{}".format(*layer.bits[option])
    if family == "zeros":
        sparsity, pattern = layer.zeros[option - 1] if option else (0, "")
        return f"{sparsity}% zeros" + (" 2:4" if pattern == "2:4" else "")
    return layer.rank_options[option - 1].label if option else "full rank"


def sensitivity_rows(
    space: SearchSpace, costs: CostModel, table: Sensitivity
) -> list[dict[str, Any]]:
    """One row per option that changes something, in the network's order.

    damage: as in the table. size_bytes, macs, latency_ms: what the option alone saves, in per cent
    of the baseline. how: measured, interpolated, and whether a milder option costs no more.
    """
    base = costs.costs(space.identity)
    rows = []
    for parameter, damage in table.damage.items():
        family, _, name = parameter.partition(":")
        for option in range(1, len(damage)):
            found = costs.costs(space.plan({parameter: option}))
            how = "measured" if option in table.measured[parameter] else "interpolated"
            if option in table.dominated.get(parameter, ()):
                how += ", saves nothing"
            rows.append(
                {
                    "layer": name,
                    "family": family,
                    "option": option_label(space, parameter, option),
                    "damage": float(damage[option]),
                    **{g: 100 * (1 - found[g] / base[g]) for g in GAINS if g in found},
                    "how": how,
                }
            )
    return rows


def sensitivity_page(space: SearchSpace, rows: list[dict[str, Any]], title: str) -> str:
    """A page with the heat map and the table, plotly included, so that it opens offline."""
    import plotly.graph_objects as go
    import plotly.io as pio

    layers = list(dict.fromkeys(r["layer"] for r in rows))
    columns: dict[tuple[str, int], str] = {}
    cells: dict[tuple[str, tuple[str, int]], dict[str, Any]] = {}
    for row in rows:
        mates = [r for r in rows if (r["layer"], r["family"]) == (row["layer"], row["family"])]
        column = (row["family"], mates.index(row) + 1)
        columns.setdefault(column, f"{row['family']} {column[1]}")
        cells[row["layer"], column] = row
    order = sorted(columns)
    grid = [[cells.get((layer, column)) for column in order] for layer in layers]
    heat = [[np.nan if c is None else np.log10(max(c["damage"], FLOOR)) for c in r] for r in grid]
    words = [["" if c is None else _hover(c) for c in r] for r in grid]
    figure = go.Figure(
        go.Heatmap(
            z=heat,
            x=[columns[c] for c in order],
            y=layers,
            text=[["" if c is None else f"{c['option']}" for c in r] for r in grid],
            texttemplate="%{text}",
            customdata=words,
            hovertemplate="%{y}<br>%{customdata}<extra></extra>",
            colorscale="YlOrRd",
            colorbar={"title": "log10 damage"},
            xgap=2,
            ygap=2,
        )
    )
    style(figure, 160 + 24 * len(layers))
    figure.update_layout(
        margin={"l": 150, "r": 20, "t": 20, "b": 60}, yaxis={"autorange": "reversed"}
    )
    picture = pio.to_html(
        figure,
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        config={"displaylogo": False, "responsive": True},
    )
    gains = [g for g in GAINS if rows and g in rows[0]]
    head = "".join(f"<th class=n>{GAINS[g]} saved, %</th>" for g in gains)
    body = "".join(
        f"<tr><td>{escape(r['layer'])}</td><td>{escape(r['option'])}</td>"
        f"<td class=n>{r['damage']:.5f}</td>"
        + "".join(f"<td class=n>{r[g]:.2f}</td>" for g in gains)
        + f"<td>{escape(r['how'])}</td></tr>"
        for r in rows
    )
    name = escape(title)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: sensitivity</title><style>{page_file("page.css")}
{_TEXT}</style></head>
<body><main>
<header><p class="name">{name}</p><h1>What each single option damages and saves</h1></header>
<section>{picture}
<p class="note">Damage: mean divergence of the outputs from the uncompressed network's when this
option alone is taken, on training images, no labels used. Columns: options from mild to strong;
colours on a logarithmic scale.</p></section>
<section class="scroll"><table><tr><th>layer</th><th>option</th><th class=n>damage</th>{head}
<th></th></tr>{body}</table></section>
</main></body></html>
"""


def _hover(row: dict[str, Any]) -> str:
    gains = ", ".join(f"{row[g]:.1f} % {GAINS[g]}" for g in GAINS if g in row)
    return f"{row['option']}: damage {row['damage']:.5f} ({row['how']})<br>saves {gains}"
