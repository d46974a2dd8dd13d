"""One view of the front: a cost along, the score up, every measured point in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .answers import answer, gains
from .axis import Axis, excluded
from .hover import hover
from .look import ACCENT, GREY, INK, panel_title
from .point import Point
from .size_classes import UNKNOWN, class_of, size_classes
from .wording import label, legible

if TYPE_CHECKING:
    from .front import ParetoFront


def view_title(front: ParetoFront, axis: Axis) -> str:
    """What a view shows, in one line."""
    found = answer(front, axis.name)
    if found is None:
        return f"{label(front.score)} against {label(axis.name).lower()}"
    share = gains(front, found.point, [axis.name])
    return f"{found.title}: {share} (trial {found.point.number})"


def draw_panel(
    figure: Any,
    front: ParetoFront,
    axis: Axis,
    span: tuple[float, float],
    column: int = 1,
    title: bool = True,
) -> None:
    """One view: x = a cost, y = the score in percent. span: (lowest, highest) score of the view.

    title: whether the panel carries its conclusion itself.
    """
    score, place = front.score, {"row": 1, "col": column}
    floor, top = span
    classes = size_classes(front)
    shown = [p for p in front.points if score in p.values and axis.name in p.values]
    number = front.baseline_number
    on = [p for p in shown if p.front and p.number != number]
    off = [p for p in shown if not p.front and p.number != number]
    feasible = [p for p in off if p.feasible and p.trusted]
    other = [p for p in off if not (p.feasible and p.trusted)]

    def scatter(points: list[Point], name: str, **style: Any) -> None:
        figure.add_scatter(
            x=[axis.at(p.values[axis.name]) for p in points],
            y=[100 * p.values[score] for p in points],
            customdata=[p.number for p in points],
            text=[hover(front, p) for p in points],
            hovertemplate="%{text}<extra></extra>",
            mode="markers",
            name=name,
            showlegend=False,
            **style,
            **place,
        )

    def marker(points: list[Point], size: float, edge: float) -> dict[str, Any]:
        kinds = [class_of(front, p, classes) for p in points]
        return {
            "color": [kind.colour if kind else UNKNOWN for kind in kinds],
            "symbol": [kind.symbol if kind else "circle" for kind in kinds],
            "size": size,
            "line": {"width": edge, "color": "rgba(90,98,108,0.9)"},
        }

    cross = {"symbol": "x-thin-open", "size": 6, "color": GREY, "line": {"width": 1}}
    scatter(other, "outside the constraints, or incomplete", marker=cross, opacity=0.55)
    scatter(feasible, "dominated", marker=marker(feasible, 7, 0), opacity=0.3)
    _staircase(figure, [p for p in shown if p.front], axis, score, place)
    bars = {"thickness": 1.2, "width": 3, "color": "rgba(110,118,129,0.7)"}
    scatter(
        on,
        "front",
        marker=marker(on, 12, 1),
        error_x=bars | {"array": [axis.at(p.errors.get(axis.name, 0.0)) for p in on]},
        error_y=bars | {"array": [100 * p.errors.get(score, 0.0) for p in on]},
    )
    start = [p for p in shown if p.number == number]
    if (
        number is None
        and front.baseline is not None
        and {score, axis.name} <= {*front.baseline.values}
    ):
        start = [Point(-1, front.baseline, summary="unchanged")]
    star = {"symbol": "star", "size": 17, "color": ACCENT, "line": {"width": 1, "color": "white"}}
    scatter(start, "baseline", marker=star)
    _baseline_lines(figure, front, axis, place)
    _shade(figure, front, axis, place, floor)
    _name_best(figure, front, axis, place)
    if title:
        panel_title(figure, view_title(front, axis), **place)
    room = top - floor
    figure.update_xaxes(**axis.settings(), **place)
    figure.update_yaxes(range=[100 * (floor - 0.04 * room), 100 * (top + 0.12 * room)], **place)


def _baseline_lines(figure: Any, front: ParetoFront, axis: Axis, place: dict[str, int]) -> None:
    base = front.baseline.values if front.baseline else {}
    line = {"dash": "dot", "color": GREY, "width": 1}
    if front.score in base:
        figure.add_hline(100 * base[front.score], line=line, layer="below", **place)
    if axis.name in base:
        figure.add_vline(axis.at(base[axis.name]), line=line, layer="below", **place)
        figure.add_annotation(
            text=f"baseline {legible(axis.name, base[axis.name])}", textangle=-90,
            x=axis.position(axis.at(base[axis.name])), xanchor="right", y=0.5, yref="y domain",
            showarrow=False, font={"size": 11, "color": GREY}, **place,
        )  # fmt: skip


def _shade(
    figure: Any, front: ParetoFront, axis: Axis, place: dict[str, int], lowest: float
) -> None:
    """Shade what the constraints exclude, where they are plain bounds on the two axes."""
    fill = {"fillcolor": "rgba(125,133,144,0.14)", "line_width": 0, "layer": "below"}
    note = {"showarrow": False, "font": {"size": 11, "color": GREY}}
    floor, ceiling = excluded(front, axis)
    if floor is not None and floor > lowest:
        figure.add_hrect(0.0, 100 * floor, **fill, **place)
        figure.add_annotation(
            text=f"excluded: below {legible(front.score, floor)}", x=0.01, xref="x domain",
            xanchor="left", y=0, yref="y domain", yanchor="bottom", **note, **place,
        )  # fmt: skip
    if ceiling is not None and ceiling < axis.high:
        figure.add_vrect(ceiling, 2 * axis.high, **fill, **place)
        figure.add_annotation(
            text=f"excluded: above {legible(axis.name, ceiling * axis.divisor)}", textangle=-90,
            x=axis.position(ceiling), xanchor="left", y=0, yref="y domain", yanchor="bottom",
            **note, **place,
        )  # fmt: skip


def steps(on: list[Point], axis: Axis, score: str) -> list[Point]:
    """The best score that each cost buys: the front of this view's two values alone."""
    found: list[Point] = []
    for p in sorted(on, key=lambda p: (p.values[axis.name], -p.values[score])):
        if not found or p.values[score] > found[-1].values[score]:
            found.append(p)
    return found


def _staircase(figure: Any, on: list[Point], axis: Axis, score: str, place: dict[str, int]) -> None:
    best = steps(on, axis, score)
    figure.add_scatter(
        x=[axis.at(p.values[axis.name]) for p in best],
        y=[100 * p.values[score] for p in best],
        mode="lines",
        line={"shape": "hv", "width": 1.3, "color": GREY},
        hoverinfo="skip",
        name="best accuracy for the cost",
        showlegend=False,
        **place,
    )


def _name_best(figure: Any, front: ParetoFront, axis: Axis, place: dict[str, int]) -> None:
    """An arrow at the point that the panel's title speaks of."""
    found = answer(front, axis.name)
    if found is None:
        return
    point, span = found.point, axis.high - axis.low
    figure.add_annotation(
        x=axis.position(axis.at(point.values[axis.name])),
        y=100 * point.values[front.score],
        text=f"trial {point.number}",
        arrowcolor=INK,
        arrowwidth=1,
        arrowhead=0,
        standoff=7,
        ax=34 if point.values[axis.name] / axis.divisor < axis.low + 0.1 * span else -34,
        ay=-30,
        font={"size": 12, "color": INK},
        **place,
    )
