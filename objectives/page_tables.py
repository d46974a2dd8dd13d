"""Tables of a front's page: the answers, and every point, each value beside the baseline's."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .answers import grouped, ratio
from .hover import tied_with
from .wording import label, legible, points

if TYPE_CHECKING:
    from .front import ParetoFront
    from .point import Point

_RUNGS = {"measure": "measured", "recover": "recovered", "confirm": "confirmed"}


def answers_table(front: ParetoFront) -> str:
    """The best point for each accepted loss, one row where two answers are the same point."""
    titles = {p.number: asked for asked, p in grouped(front)}
    near = front.nearest()
    if not front.front and near is not None:
        titles[near.number] = "Nearest to the constraints"
    if front.front:
        knee = front.knee().number
        titles[knee] = f"{titles[knee]} · knee" if knee in titles else "Knee"
    rows = [_row(front, front[n], text) for n, text in titles.items()]
    return _grid(front, rows, "What to take", "asked for") if rows else ""


def front_table(front: ParetoFront) -> str:
    """Every point of the front, best first objective first."""
    rows = [_row(front, p, None) for p in front.front]
    return _grid(front, rows, f"The front: {len(front)} points", None) if rows else ""


def _grid(front: ParetoFront, rows: list[str], heading: str, first: str | None) -> str:
    costs = [n for n in ("latency_ms", "size_bytes", "macs") if _has(front, n)]
    names = [*([first] if first else []), "trial", label(front.score).lower(), "points"]
    head = [f"<th{'' if n == first else ' class=n'}>{escape(n)}</th>" for n in names]
    head += [f"<th colspan=2{_extra(n)}>{escape(label(n))}</th>" for n in costs]
    tail = "<th>what was changed</th>"
    tail += "" if first else '<th class="extra">values</th>'
    tied = any(p.tie is not None for p in front.front)
    tail += '<th class="n extra">ties with</th>' if tied and not first else ""
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
        text = escape(legible(name, p.values.get(name)))
        cells.append(f'<td class="n{" extra" * (name == "macs")}">{text}</td>')
        width = 0.0 if share is None else 100 * min(max(share, 0.0), 1.0)
        text = "" if share is None else f"{share:.2f}×"
        kind = "bar extra" if name == "macs" else "bar"
        bar = f'<em><i style="width:{width:.0f}%"></i></em>'
        cells.append(f'<td class="{kind}">{text}{bar}</td>')
    cells.append(f"<td class=plan>{escape(p.summary)}</td>")
    if asked is None:
        rung = f'<td class="extra">{_RUNGS[p.rung]}</td>'
        cells.append(rung)
        if any(other.tie is not None for other in front.front):
            cells.append(f'<td class="n extra">{tied_with(front, p)}</td>')
    mark = "" if asked is not None else f' id="trial-{p.number}"'
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _extra(name: str) -> str:
    """Columns that a narrow page leaves out."""
    return ' class="extra"' if name == "macs" else ""


def _has(front: ParetoFront, name: str) -> bool:
    return any(name in p.values for p in front.points)
