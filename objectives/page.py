"""The front as one HTML page that needs nothing else: pictures first, then answers and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from .anatomy import Anatomy
from .answers import answers, conclusion
from .figure import unseen, view_figure, views
from .growth import growth_figure, growth_title
from .knobs import Knobs
from .knobs_figure import knobs_figure
from .layers_table import layers_table, layers_title
from .look import ACCENT, NIGHT
from .page_tables import answers_table, front_table
from .panel import view_title
from .size_classes import size_classes
from .target_fronts import differences
from .wording import label, legible

if TYPE_CHECKING:
    import pandas as pd

    from .front import ParetoFront


def front_page(
    front: ParetoFront,
    history: pd.DataFrame | None = None,
    title: str | None = None,
    anatomies: Mapping[int, Anatomy] | None = None,
    knobs: Knobs | None = None,
    more: str = "",
) -> str:
    """The page as text, plotly included, so that it opens with no network.

    history: as :meth:`ParetoFront.history` gives it (default: computed). title: of the page.
    anatomies: trial -> its layers, for the per-layer picture. knobs: which choices matter.
    more: HTML before the footer.
    """
    history = front.history() if history is None else history
    figures: dict[str, Any] = {f"view-{a.name}": view_figure(front, a) for a in views(front)}
    if len(history) > 1:
        figures["growth"] = growth_figure(history)
    if knobs is not None and knobs.knobs:
        figures["knobs"] = knobs_figure(knobs)
    name = escape(title or "Pareto front")
    chosen = _chosen(front)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: {escape(conclusion(front))}</title>
<style>{page_file("page.css")}</style>
<script>{plotly_source()}</script>
</head>
<body{f' data-chosen="{chosen}"' if chosen is not None else ""}>
<main>
<header><p class="name">{name}</p><h1>{escape(conclusion(front))}</h1></header>
{_tiles(front)}
{_views(front)}
{_layers(front, anatomies or {}, chosen)}
{answers_table(front)}
{_search(front, history, knobs)}
{front_table(front)}
{more}
<footer>{_footer(front)}</footer>
</main>
<script type="application/json" id="figures">{_json(figures)}</script>
<script type="application/json" id="night">{json.dumps(NIGHT)}</script>
<script>{page_file("page.js")}</script>
</body>
</html>
"""


@cache
def plotly_source() -> str:
    """plotly.js, as the Python package brings it (4.9 MB; it brings no smaller one)."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def page_file(name: str) -> str:
    """A style sheet or script that lies beside this file."""
    return (files(__package__ or "paretune.objectives") / name).read_text(encoding="utf-8")


def _json(figures: Mapping[str, Any]) -> str:
    plain = {name: json.loads(figure.to_json()) for name, figure in figures.items()}
    for figure in plain.values():
        figure["layout"].pop("template", None)
    return json.dumps(plain).replace("<", "\\u003c")  # or a name may open or close the script


def _chosen(front: ParetoFront) -> int | None:
    """The point that the page opens with: the one of its headline, else the knee."""
    found = answers(front)
    if found:
        return found[0].point.number
    return front.knee().number if len(front) else None


def _views(front: ParetoFront) -> str:
    """Accuracy against each cost, and one legend for both."""
    cards = "".join(
        f'<div><h3>{escape(view_title(front, axis))}</h3><div id="view-{axis.name}"></div></div>'
        for axis in views(front)
    )
    signs = [
        f'<span><b style="{_colour(kind.colour)}">{kind.sign}</b>{kind.label}</span>'
        for kind in size_classes(front)
    ]
    legend = ["<span>File size over the baseline’s:</span>", *signs] if signs else []
    legend += ["<span>large: the front, bars ± 1 standard error</span>"]
    legend += ["<span>faint: dominated</span>"]
    if any(not (p.feasible and p.trusted) for p in front.points):
        legend += ["<span><b>×</b>outside the constraints, or incomplete</span>"]
    legend += [f'<span><b style="color:{ACCENT}">★</b>baseline</span>']
    hidden = unseen(front)
    more = "1 more point lies" if hidden == 1 else f"{hidden} more points lie"
    below = f"{more} below the first view; double click to see all. " * (hidden > 0)
    return f"""<section>
<p class="legend">{" ".join(legend)}</p>
<div class="views">{cards}</div>
<p class="note">{below}{escape(_splits(front))}{escape(_outside(front))}
<span class="hands">Hover for a plan, click to see its layers, drag to zoom.</span></p>
{_targets(front)}</section>"""


def _colour(day: str) -> str:
    """A colour of the pictures as CSS, on light pages and on dark ones."""
    return f"color:{day};color:light-dark({day},{NIGHT.get(day, day)})"


def _splits(front: ParetoFront) -> str:
    """Why a faint point can seem to beat the front."""
    rungs = {p.rung for p in front.points}
    if "confirm" not in rungs or len(rungs) == 1:
        return ""
    return (
        "The front was measured again at the end, on the evaluation images; the other points keep "
        "the search's own values, with which they were compared. "
    )


def _layers(front: ParetoFront, anatomies: Mapping[int, Anatomy], chosen: int | None) -> str:
    """The per-layer picture, one panel a point, of which one is shown."""
    known = [p for p in front.front if p.number in anatomies]
    if not known:
        return ""
    chosen = chosen if chosen in anatomies else known[0].number
    options, panels = [], []
    for p in known:
        words = [legible(front.score, p.values.get(front.score))]
        words += [legible(n, p.values[n]) for n in ("latency_ms", "size_bytes") if n in p.values]
        mark = " selected" if p.number == chosen else ""
        text = escape(f"trial {p.number} · {' · '.join(words)} · {p.summary}")
        options.append(f'<option value="{p.number}"{mark}>{text}</option>')
        shown = "" if p.number == chosen else " hidden"
        heading = escape(layers_title(f"Trial {p.number}", anatomies[p.number]))
        panels.append(
            f'<div data-layers="{p.number}"{shown}><h3>{heading}</h3>'
            f"{layers_table(anatomies[p.number])}</div>"
        )
    return f"""<section id="layers"><h2>What was cut where
<select id="choose" aria-label="Point of the front">{"".join(options)}</select></h2>
<p class="note" id="chosen"></p>{"".join(panels)}</section>"""


def _search(front: ParetoFront, history: pd.DataFrame, knobs: Knobs | None) -> str:
    """How the search went and which of its knobs matter."""
    cards = ""
    if len(history) > 1:
        note = "The share of a reference box that the front dominates (see below)"
        if any(p.rung == "confirm" for p in front):
            note += ", in values on the search's images; the one above is of the confirmed values"
        picture = f'<div id="growth"></div><p class=note>{note}.</p>'
        cards += f"<div><h3>{escape(growth_title(history))}</h3>{picture}</div>"
    if knobs is not None:
        picture = '<div id="knobs"></div>' if knobs.knobs else ""
        note = f"<p class=note>{escape(knobs.how)}</p>"
        cards += f"<div><h3>{escape(knobs.title)}</h3>{picture}{note}</div>"
    return f'<section><h2>The search</h2><div class="views">{cards}</div></section>' * bool(cards)


def _targets(front: ParetoFront) -> str:
    """With several targets: where their fronts differ."""
    return "".join(f'\n<p class="note">{escape(line)}</p>' for line in differences(front))


def _tiles(front: ParetoFront) -> str:
    """The baseline and the size of the front, in one line."""
    base = front.baseline.values if front.baseline else {}
    shown = [n for n in (front.score, "latency_ms", "size_bytes", "macs", "params") if n in base]
    tiles = [(label(name).lower(), legible(name, base[name])) for name in shown[:4]]
    tiles[:] = [(text.replace("macs", "MACs"), value) for text, value in tiles]
    tiles[:1] = [(f"Baseline {text}", value) for text, value in tiles[:1]]
    tiles.append(("On the front", f"{len(front)} of {len(front.points)} measured"))
    volumes = f"{front.hypervolume():.3f}, {front.hypervolume_useful():.3f} in the useful region"
    tiles.append(("Hypervolume", volumes))
    cells = [f"<div><span>{escape(t)}</span><b>{escape(v)}</b></div>" for t, v in tiles]
    return f'<section class="tiles">{"".join(cells)}</section>'


def _outside(front: ParetoFront) -> str:
    untrusted = sum(not p.trusted for p in front.points)
    if not untrusted:
        return ""
    return f"{untrusted} points lack a measurement and cannot be on the front."


def _footer(front: ParetoFront) -> str:
    goal = " and ".join(f"{o.name} ({o.direction})" for o in front.objectives)
    limits = "; ".join(str(c) for c in front.constraints) or "none"
    return (
        f"<p>Objectives: {escape(goal)}. Constraints: {escape(limits)}. × and points are against "
        "the baseline, the unchanged network measured in the same way. Every value was measured on "
        "the exported file: on the search split, or, where it says confirmed, on the evaluation "
        "split. Points tie when they differ by less than two combined standard errors.</p>"
        "<p>What was changed: keep, the mean share of channels that the groups keep; int8 a/b, so "
        "many of the layers that the search may change; rank, layers that were factorised.</p>"
        "<p>Hypervolume: the share of the box between the ideal and a reference point (0.40 of "
        "accuracy lost, 1.05× the size, 1.05× the latency, or MACs where latency is not measured) "
        "that the points dominate; useful region: the same with 0.03 lost.</p>"
    )
