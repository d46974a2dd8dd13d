"""How a front shows itself in a notebook."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from .answers import conclusion
from .static_figure import picture
from .wording import legible, points

if TYPE_CHECKING:
    from .front import ParetoFront


def notebook_view(front: ParetoFront) -> str:
    """What a notebook shows of a front: the answer, a picture that needs no network, the table."""
    drawn = base64.b64encode(picture(front, "svg")).decode() if front.points else ""
    image = f'<img alt="" style="max-width:100%" src="data:image/svg+xml;base64,{drawn}">'
    return f"<p><b>{escape(conclusion(front))}</b></p>{image * bool(drawn)}{_table(front)}"


def _table(front: ParetoFront) -> str:
    """Values rounded, each beside its ratio to the baseline."""
    head = ["trial", front.score, "points", "size", "×", "latency", "×", "what was changed"]
    rows = []
    for p in front.front:
        cells = [
            f"{p.number}{' ✓' if p.rung == 'confirm' else ''}",
            legible(front.score, p.values.get(front.score)),
            points(front.drop(p)),
            legible("size_bytes", p.values.get("size_bytes")),
            legible("size_ratio", p.values.get("size_ratio")),
            legible("latency_ms", p.values.get("latency_ms")),
            legible("latency_ratio", p.values.get("latency_ratio")),
        ]
        inner = "".join(f"<td style='text-align:right'>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr>{inner}<td style='text-align:left'>{escape(p.summary)}</td></tr>")
    count = f"{len(front)} points on the front of {len(front.points)} measured (✓ confirmed)"
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f"<p>{escape(count)}; hypervolume {front.hypervolume():.3f}, "
        f"useful region {front.hypervolume_useful():.3f}</p>"
        f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
