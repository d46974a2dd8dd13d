"""The front as one HTML page that needs nothing else: the answers, the picture, the table."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .answers import answers, conclusion, ratio
from .figure import front_figure
from .table import write_whole
from .target_fronts import differences
from .wording import label, legible, points

if TYPE_CHECKING:
    import pandas as pd

    from .front import ParetoFront
    from .point import Point

_RUNGS = {"measure": "measured", "recover": "recovered", "confirm": "confirmed"}


def front_page(
    front: ParetoFront, history: pd.DataFrame | None = None, title: str | None = None
) -> str:
    """The page as text, plotly included, so that it opens with no network.

    history: as :meth:`ParetoFront.history` gives it (default: computed). title: of the page.
    """
    import plotly.io as pio

    figure = front_figure(front, front.history() if history is None else history, title=False)
    picture = pio.to_html(
        figure,
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        div_id="front",
        post_script=_SCRIPT,
        config={"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": _BUTTONS},
    )
    name = escape(title or "Pareto front")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: {escape(conclusion(front))}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header><p class="name">{name}</p><h1>{escape(conclusion(front))}</h1></header>
{_tiles(front)}
{_answers(front)}
<section>
{picture}
<p class="note">Drag to zoom, double click to see all points, hover for a plan, click a point to
find it in the table. {escape(_outside(front))}</p>{_targets(front)}
</section>
{_table(front)}
<footer>{_footer(front)}</footer>
</main>
</body>
</html>
"""


def _targets(front: ParetoFront) -> str:
    """With several targets: where their fronts differ."""
    return "".join(f'\n<p class="note">{escape(line)}</p>' for line in differences(front))


def write_page(
    path: str | Path,
    front: ParetoFront,
    history: pd.DataFrame | None = None,
    title: str | None = None,
) -> None:
    """Write :func:`front_page` to a file, whole or not at all. Raises EnvironmentFault."""
    write_whole(Path(path), front_page(front, history, title))


def _tiles(front: ParetoFront) -> str:
    """The baseline and the size of the front, a tile each."""
    base = front.baseline.values if front.baseline else {}
    shown = [n for n in (front.score, "latency_ms", "size_bytes", "macs", "params") if n in base]
    tiles = [("Baseline " + label(name).lower(), legible(name, base[name])) for name in shown[:4]]
    tiles[:] = [(text.replace("macs", "MACs"), value) for text, value in tiles]
    tiles.append(("On the front", f"{len(front)} of {len(front.points)} measured"))
    volumes = f"{front.hypervolume():.3f} · {front.hypervolume_useful():.3f}"
    tiles.append(("Hypervolume · useful region", volumes))
    cells = [f"<div><span>{escape(t)}</span><b>{escape(v)}</b></div>" for t, v in tiles]
    return f'<section class="tiles">{"".join(cells)}</section>'


def _answers(front: ParetoFront) -> str:
    """The best point for each accepted loss, one row where two answers are the same point."""
    titles: dict[int, list[str]] = {}
    found = answers(front)
    for one in found:
        titles.setdefault(one.point.number, []).append(one.title)
    near = front.nearest()
    if not front.front and near is not None:
        titles[near.number] = ["Nearest to the constraints"]
    if front.front:
        titles.setdefault(front.knee().number, []).append("Knee")
    rows = [_row(front, front[n], " · ".join(_merged(texts))) for n, texts in titles.items()]
    return _grid(front, rows, "What to take", "asked for") if rows else ""


def _merged(texts: list[str]) -> list[str]:
    """``Fastest within 1 point`` and ``Smallest within 1 point`` as one phrase."""
    out: dict[str, list[str]] = {}
    for text in texts:
        kind, _, limit = text.partition(" within ")
        out.setdefault(limit, []).append(kind)
    joined = [(" and ".join(kinds), limit) for limit, kinds in out.items()]
    return [
        f"{kinds[0]}{kinds[1:].lower().replace('mac', 'MAC')}" + (f" within {limit}" * bool(limit))
        for kinds, limit in joined
    ]


def _table(front: ParetoFront) -> str:
    rows = [_row(front, p, None) for p in front.front]
    return _grid(front, rows, f"The front: {len(front)} points", None) if rows else ""


def _grid(front: ParetoFront, rows: list[str], heading: str, first: str | None) -> str:
    costs = [n for n in ("latency_ms", "size_bytes", "macs") if _has(front, n)]
    names = [*([first] if first else []), "trial", label(front.score).lower(), "points"]
    head = [f"<th{'' if n == first else ' class=n'}>{escape(n)}</th>" for n in names]
    head += [f"<th colspan=2>{escape(label(n))}</th>" for n in costs]
    tail = "<th>what was changed</th>" + ("" if first else "<th>rung</th><th class=n>tie</th>")
    return (
        f"<section><h2>{escape(heading)}</h2><div class=scroll><table>"
        f"<thead><tr>{''.join(head)}{tail}</tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></div></section>"
    )


def _row(front: ParetoFront, p: Point, asked: str | None) -> str:
    score = legible(front.score, p.values.get(front.score))
    error = p.errors.get(front.score)
    if error:
        score += f" <small>± {100 * error:.2f}</small>"
    cells = [] if asked is None else [f"<td class=asked>{escape(asked)}</td>"]
    cells += [f"<td class=n>{p.number}</td>", f"<td class=n>{score}</td>"]
    cells.append(f"<td class=n>{points(front.drop(p))}</td>")
    for name in ("latency_ms", "size_bytes", "macs"):
        if not _has(front, name):
            continue
        share = ratio(front, p, name)
        cells.append(f"<td class=n>{escape(legible(name, p.values.get(name)))}</td>")
        width = 0.0 if share is None else 100 * min(max(share, 0.0), 1.0)
        text = "" if share is None else f"{share:.2f}×"
        cells.append(f'<td class=bar>{text}<em><i style="width:{width:.0f}%"></i></em></td>')
    cells.append(f"<td>{escape(p.summary)}</td>")
    if asked is None:
        tie = "" if p.tie is None else f"with {p.tie}" if p.tie != p.number else "leads"
        cells += [f"<td>{_RUNGS[p.rung]}</td>", f"<td class=n>{tie}</td>"]
    mark = "" if asked is not None else f' id="trial-{p.number}"'
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _has(front: ParetoFront, name: str) -> bool:
    return any(name in p.values for p in front.points)


def _outside(front: ParetoFront) -> str:
    untrusted = sum(not p.trusted for p in front.points)
    if not untrusted:
        return ""
    return f"{untrusted} points with an unstable or missing measurement cannot be on the front."


def _footer(front: ParetoFront) -> str:
    goal = " and ".join(f"{o.name} ({o.direction})" for o in front.objectives)
    limits = "; ".join(str(c) for c in front.constraints) or "none"
    return (
        f"<p>Objectives: {escape(goal)}. Constraints: {escape(limits)}. × and points are against "
        "the baseline, the unchanged network measured in the same way. Every value was measured on "
        "the exported file: on the search split, or, where it says confirmed, on the evaluation "
        "split. Points tie when they differ by less than two combined standard errors.</p>"
        "<p>Hypervolume: the share of the box between the ideal and a reference point (0.40 of "
        "accuracy lost, 1.05× the size, 1.05× the latency, or MACs where latency is not measured) "
        "that the points dominate; useful region: the same with 0.03 lost.</p>"
    )


_BUTTONS = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "sendDataToCloud"]

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dee4;
  --card: #f6f8fa; --page: #ffffff; --bar: #9ec3e6; --mark: #fff3c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa5b1; --line: #30363d;
  --card: #161b22; --page: #0d1117; --bar: #2f5f8a; --mark: #4d4419; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 1360px; margin: 0 auto; padding: 28px 32px 40px; }
.name { margin: 0; color: var(--soft); font-size: 14px; }
h1 { margin: 2px 0 18px; font-size: 26px; line-height: 1.25; letter-spacing: -0.01em; }
h2 { margin: 30px 0 8px; font-size: 17px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 9px 14px; }
.tiles span { display: block; color: var(--soft); font-size: 12.5px; }
.tiles b { font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14px; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 12.5px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
.n { text-align: right; }
small { color: var(--soft); font-size: 12px; }
.bar em { display: inline-block; width: 60px; height: 9px; margin-left: 7px;
  background: var(--card); border-radius: 2px; }
.bar i { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
.asked { white-space: normal; min-width: 210px; }
tr.found td { background: var(--mark); }
section > div { margin-top: 8px; }
.note, footer { color: var(--soft); font-size: 13px; }
footer { margin-top: 26px; }
"""

_SCRIPT = """
const plot = document.getElementById('{plot_id}');
const dark = matchMedia('(prefers-color-scheme: dark)');
function colours() {
  const ink = dark.matches ? '#c9d1d9' : '#4a525c';
  const change = {'font.color': ink};
  plot.layout.annotations.forEach((note, i) => {
    if (note.font && (note.font.color === '#4a525c' || note.font.color === '#c9d1d9')) {
      change['annotations[' + i + '].font.color'] = ink;
      change['annotations[' + i + '].arrowcolor'] = ink;
    }
  });
  Plotly.relayout(plot, change);
}
if (dark.matches) colours();
dark.addEventListener('change', colours);
let linking = false;
plot.on('plotly_hover', event => {
  if (linking || event.points[0].customdata === undefined) return;
  const number = event.points[0].customdata;
  const same = [];
  plot.data.forEach((trace, curve) => {
    const index = trace.customdata ? Array.from(trace.customdata).indexOf(number) : -1;
    if (index >= 0) same.push({curveNumber: curve, pointNumber: index});
  });
  const view = found => plot.data[found.curveNumber];
  const views = same.map(found => (view(found).xaxis || 'x') + (view(found).yaxis || 'y'));
  linking = true;
  Plotly.Fx.hover(plot, same, views);
  linking = false;
});
plot.on('plotly_click', event => {
  const row = document.getElementById('trial-' + event.points[0].customdata);
  document.querySelectorAll('tr.found').forEach(old => old.classList.remove('found'));
  if (!row) return;
  row.classList.add('found');
  row.scrollIntoView({behavior: 'smooth', block: 'center'});
});
"""
