"""The picture and the page: offline, complete, and graceful when values are missing."""

from __future__ import annotations

import json
import math
import re
from html import escape
from typing import Any

import numpy as np
import pytest

from paretune.objectives.anatomy import anatomy
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.figure import front_figure, views
from paretune.objectives.front import ParetoFront
from paretune.objectives.knobs import Knob, Knobs
from paretune.objectives.objective import QUANTITIES, Objective
from paretune.objectives.page import front_page
from paretune.objectives.wording import label
from paretune.spaces.plan import CompressionPlan, LayerChoice

FULL = CompressionPlan({"a": 32}, {"<b>": LayerChoice()})
COSTS = {"size_bytes": 1e6, "latency_ms": 0.9, "macs": 4e7}


def study(
    *costs: str, count: int = 40, constraints: tuple[str, ...] = (), score: str = "accuracy",
    baseline_row: bool = True,
) -> ParetoFront:  # fmt: skip
    rng = np.random.default_rng(0)
    base = Evaluation(FULL, "measure", {score: 0.9} | {n: COSTS[n] for n in costs})
    rows = [(0, base)] if baseline_row else []
    for number in range(1, count):
        share = rng.uniform(0.15, 1.0)
        values = {score: 0.9 - 0.6 * (1 - share) ** 3 + rng.normal(0, 0.003)}
        values |= {n: COSTS[n] * share * rng.uniform(0.9, 1.1) for n in costs}
        plan = CompressionPlan({"a": number}, {"<b>": LayerChoice(8, 8)})
        rows.append((number, Evaluation(plan, "measure", values, {score: 0.004})))
    objectives = [Objective(n, {}) for n in (score, *costs)]
    return ParetoFront(rows, objectives, constraints, base)


def figures(page: str) -> dict[str, Any]:
    """The figures that the page's script draws; numbers that are not finite are refused."""
    text = page.split('<script type="application/json" id="figures">')[1].split("</script>")[0]
    assert "<" not in text

    def refuse(number: str) -> None:
        raise AssertionError(f"{number} is no JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def test_the_page_needs_no_network() -> None:
    front = study("size_bytes", "latency_ms", constraints=("accuracy >= 0.8",))
    text = front_page(front, title="<i>study</i>")
    assert "&lt;i&gt;study&lt;/i&gt;" in text
    assert len(text) > 3_000_000  # plotly itself is inside
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text)
    assert not [tag for tag in tags if re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", tag)]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for point in front:
        assert f'id="trial-{point.number}"' in text


@pytest.mark.parametrize("name", ["</script><img src=x>", "<!--<script>", "<b onclick=x>"])
def test_a_layers_name_is_text_wherever_it_stands(name: str) -> None:
    front = study("size_bytes", "latency_ms", count=5)
    layers = anatomy(front[1].plan, CompressionPlan({"a": 32}, {name: LayerChoice()}))
    knobs = Knobs((Knob("bits", name, 1.0),), "nats", f"how {name}", logarithmic=True)
    page = front_page(front, anatomies={p.number: layers for p in front}, knobs=knobs)
    assert figures(page)["knobs"]["data"][0]["y"][0].startswith(name)
    assert name not in page
    assert page.count(escape(name)) > 2


def test_quantities_of_every_kind_are_drawn() -> None:
    """Whatever is in QUANTITIES may be an objective, and has a name."""
    values = {name: 0.5 for name in QUANTITIES}
    plan = CompressionPlan({"a": 8}, {"<b>": LayerChoice(sparsity=50)})
    objectives = [Objective(name, {}) for name in QUANTITIES]
    front = ParetoFront(
        [(0, Evaluation(FULL, "measure", values)), (1, Evaluation(plan, "measure", values))],
        objectives,
    )
    text = " ".join(t for trace in front_figure(front).data for t in trace.text or ())
    for name in ("archive_bytes", "energy_mj", "throughput"):
        assert label(name) in text
    assert label("a_new_one") == "a_new_one"


def test_every_point_is_in_both_views_once() -> None:
    front = study("size_bytes", "latency_ms", "macs")
    figure = front_figure(front, front.history())
    for axis in (None, "x2"):
        numbers = [
            n for trace in figure.data
            if trace.customdata is not None and (trace.xaxis or "x") == (axis or "x")
            for n in trace.customdata
        ]  # fmt: skip
        assert sorted(numbers) == [p.number for p in front.points]
    assert figure.layout.title.text.startswith("<b>Best within")
    assert figure.layout.xaxis.title.text == "Latency, ms for one batch"
    assert figure.layout.xaxis2.title.text == "File size, kB"
    stars = [t for t in figure.data if t.name == "baseline" and t.customdata is not None]
    assert [star.y[0] for star in stars] == [pytest.approx(90.0)] * 2


def test_the_first_view_is_near_the_baseline() -> None:
    front = study("size_bytes", "latency_ms")
    low, high = front_figure(front).layout.yaxis.range
    assert low > 100 * (0.9 - 0.17)
    assert high > max(100 * p.values["accuracy"] for p in front)
    outliers = study("size_bytes", "latency_ms")
    tiny = Evaluation(
        CompressionPlan({"a": 999}, {}), "measure", dict.fromkeys(COSTS, 0.01) | {"accuracy": 0.1}
    )
    rows = [(p.number, p.evaluation) for p in outliers.points] + [(999, tiny)]
    beside = ParetoFront(rows, outliers.objectives, (), outliers.baseline)
    for axis in ("xaxis", "xaxis2"):
        first, second = (
            front_figure(front).layout[axis].range,
            front_figure(beside).layout[axis].range,
        )
        assert first == second  # a useless point far away does not squeeze the view


def test_wide_ranges_are_logarithmic() -> None:
    front = study("size_bytes", constraints=())
    small = Evaluation(
        CompressionPlan({"a": 999}, {}), "measure", {"size_bytes": 9e4, "accuracy": 0.85}
    )
    rows = [(p.number, p.evaluation) for p in front.points] + [(999, small)]
    axis = front_figure(ParetoFront(rows, front.objectives, (), front.baseline)).layout.xaxis
    assert axis.type == "log"
    assert 10 ** axis.range[0] < 90 < 1000 < 10 ** axis.range[1]  # kB


def test_constraints_are_shaded() -> None:
    front = study(
        "size_bytes", "latency_ms", constraints=("accuracy >= 0.8 and latency_ratio < 0.5",)
    )
    shapes = [s for s in front_figure(front).layout.shapes if s.type == "rect"]
    assert {shape.y1 for shape in shapes if shape.xref.endswith("domain")} == {80.0}
    assert [s.x0 for s in shapes if s.yref.endswith("domain")] == [pytest.approx(0.45)]


@pytest.mark.parametrize(
    "front",
    [
        study("size_bytes"),
        study("macs"),
        study("size_bytes", "macs", score="fidelity"),
        study("size_bytes", "latency_ms", baseline_row=False),
        study("size_bytes", count=1),
        study("size_bytes", "latency_ms", count=3, constraints=("accuracy > 0.999",)),
        ParetoFront([], [Objective("accuracy", {}), Objective("size_bytes", {})]),
    ],
    ids=["size", "macs", "fidelity", "baseline apart", "baseline only", "none feasible", "empty"],
)
def test_it_is_drawn_with_what_there_is(front: ParetoFront) -> None:
    assert len(figures(front_page(front))) >= len(views(front))
    for trace in front_figure(front, front.history()).data:
        assert all(y is None or math.isfinite(y) for y in trace.y)
