"""The front: brute force, confirmed values, constraints, ties, choices, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import EnvironmentFault, InputError, NothingMeetsError
from paretune.objectives.answers import answers, conclusion, markdown
from paretune.objectives.dominance import dominates
from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.objectives.front import ParetoFront
from paretune.objectives.objective import Objective
from paretune.objectives.wording import legible, summary
from paretune.spaces.plan import CompressionPlan, LayerChoice

OBJECTIVES = [Objective(n, {}) for n in ("accuracy", "size_bytes", "latency_ms")]
BASE = {"accuracy": 0.9, "size_bytes": 1000.0, "latency_ms": 2.0, "macs": 100.0}
SAME = {"accuracy_drop": 0.0, "size_ratio": 1.0, "latency_ratio": 1.0}
FULL = CompressionPlan({"a": 16, "b": 32}, {"a": LayerChoice(), "b": LayerChoice()})


def plan(number: int) -> CompressionPlan:
    layers = {"a": LayerChoice(8, 8), "b": LayerChoice(8, 8, "svd", (number,))}
    return CompressionPlan({"a": 8, "b": 32}, layers)


def measured(
    accuracy: float, size: float, latency: float, number: int = 1, rung: str = "measure",
    errors: Mapping[str, float] | None = None, **notes: object,
) -> Evaluation:  # fmt: skip
    values = {"accuracy": accuracy, "size_bytes": size, "latency_ms": latency}
    values |= {
        "accuracy_drop": 0.9 - accuracy,
        "size_ratio": size / 1000,
        "latency_ratio": latency / 2,
    }
    artifact = Artifact(f"{number:064d}", int(size), "onnx")
    return Evaluation(plan(number), rung, values, errors or {}, artifact, notes=notes)


def front_of(*rows: tuple[int, Evaluation], constraints: tuple[str, ...] = ()) -> ParetoFront:
    return ParetoFront(rows, OBJECTIVES, constraints, Evaluation(FULL, "measure", BASE))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]), st.sampled_from([100.0, 300.0, 700.0]),
        st.sampled_from([0.5, 1.0, 1.5, 2.0]),
    ), max_size=14,
)  # fmt: skip


@given(ROWS)
@settings(max_examples=200, deadline=None)
def test_the_front_is_brute_forces_and_a_dominated_point_changes_nothing(
    rows: list[tuple[float, float, float]],
) -> None:
    evaluations = [(n, measured(*row, number=n + 1)) for n, row in enumerate(rows)]
    front = front_of(*evaluations)
    values = {n: e.values for n, e in evaluations}
    expected = {
        n for n in values
        if not any(dominates(values[m], values[n], OBJECTIVES) for m in values)
    }  # fmt: skip
    assert {p.number for p in front} == expected
    assert [p.values["accuracy"] for p in front] == sorted(
        (values[n]["accuracy"] for n in expected), reverse=True
    )
    if rows:
        accuracy, size, latency = rows[0]
        worse = (99, measured(accuracy - 0.01, size, latency + 0.01, number=99))
        assert {p.number for p in front_of(*evaluations, worse)} == expected
        assert front_of(*evaluations, worse).hypervolume() == pytest.approx(front.hypervolume())
        history = front.history()
        assert history["hypervolume"].is_monotonic_increasing
        assert history["hypervolume"].iloc[-1] == pytest.approx(front.hypervolume())
        assert history["front_size"].iloc[-1] == len({rows[n] for n in expected})


def test_failed_incomplete_and_infeasible_points_stay_off_the_front() -> None:
    front = front_of(
        (0, measured(0.90, 1000, 2.0)),
        (1, Evaluation.failure(plan(1), "crashed")),
        (3, measured(0.50, 10, 0.2, 3)),
        (4, Evaluation(plan(4), "measure", {"accuracy": 0.99})),
        constraints=("accuracy >= 0.8",),
    )
    assert [p.number for p in front] == [0]
    assert [p.number for p in front.points] == [0, 3, 4]
    assert [p.trusted for p in front.points] == [True, True, False]
    assert [p.feasible for p in front.points] == [True, False, True]
    assert front.hypervolume() == front_of((0, measured(0.90, 1000, 2.0))).hypervolume()


def test_confirmed_values_are_reported_and_judged_among_confirmed_points() -> None:
    rows = [(n, measured(0.88 - n / 100, 500 - 100 * n, 1.0, n)) for n in (1, 2)]
    rows.append((3, measured(0.80, 250, 1.0, 3)))
    assert [p.number for p in front_of(*rows)] == [1, 2, 3]
    confirmed = [
        (1, measured(0.84, 400, 1.0, 1, "confirm")),
        (2, measured(0.85, 300, 1.0, 2, "confirm")),
    ]
    front = front_of(*rows, *confirmed)
    assert [p.number for p in front] == [2, 3]  # 2 beats 1 where both were confirmed
    assert front[2].rung == "confirm"
    assert front[2].values["accuracy"] == 0.85
    assert front[3].rung == "measure"  # never judged against another split
    failed = Evaluation.failure(plan(2), "disk full", "confirm")
    assert front_of(*rows, (2, failed))[2].values["accuracy"] == 0.86


def test_ties_need_every_objective_within_errors() -> None:
    errors = {"accuracy": 0.01, "latency_ms": 0.02}
    front = front_of(
        (1, measured(0.880, 300.0, 1.00, 1, errors=errors)),
        (2, measured(0.870, 300.2, 1.03, 2, errors=errors)),  # within, though dominated
        (3, measured(0.850, 299.9, 1.00, 3, errors=errors)),  # 0.03 > 2 * 0.0141
        (4, measured(0.880, 200.0, 1.01, 4, errors=errors)),  # a third smaller
    )
    assert {p.number: p.tie for p in front.points} == {1: 1, 2: 1, 3: None, 4: None}
    assert not front[2].front
    assert front.table(everything=True)["tie"].count() == 2


def study() -> ParetoFront:
    return front_of(
        (0, Evaluation(FULL, "measure", BASE | SAME)),
        (1, measured(0.897, 300.0, 1.2, 1)),
        (2, measured(0.893, 280.0, 1.0, 2)),
        (3, measured(0.893, 250.0, 1.1, 3)),
        (4, measured(0.860, 150.0, 0.8, 4)),
    )  # fmt: skip


def test_choose() -> None:
    front = study()
    where = "accuracy_drop <= 0.01 and size_ratio < 0.3"
    assert front.choose(where, best="latency_ms").number == 2
    assert front.choose(where, best="size_bytes").number == 3
    assert front.choose(best="accuracy").number == 0
    assert front.choose("accuracy_drop <= 0.005", "latency_ratio").number == 1
    assert front.choose().number == front.knee().number
    with pytest.raises(NothingMeetsError, match="nearest is trial 4: size_ratio is 0.150×"):
        front.choose("size_ratio < 0.1", "latency_ms")
    with pytest.raises(InputError, match="'latency' was not measured; did you mean 'latency_ms'"):
        front.choose(best="latency")
    with pytest.raises(InputError, match="unknown value 'fidelity'"):
        front.choose("fidelity > 0.9", "latency_ms")
    with pytest.raises(NothingMeetsError):
        front_of().choose(best="latency_ms")
    with pytest.raises(NothingMeetsError):
        front_of().knee()


def test_choose_takes_a_point_that_has_the_value() -> None:
    values = measured(0.89, 250, 1.1).values | {"archive_bytes": 9.0}
    front = front_of(
        (1, measured(0.88, 200, 1.0, 1)),
        (3, Evaluation(plan(3), "measure", values)),
        (1, measured(0.88, 200, 1.0, 1, "confirm")),
    )
    assert front.choose(best="archive_bytes").number == 3
    with pytest.raises(NothingMeetsError, match="'size_bytes < 220' was measured in 'archive"):
        front.choose("size_bytes < 220", best="archive_bytes")


def test_choose_keeps_the_constraints_and_breaks_ties_by_the_front() -> None:
    rows = [
        (1, measured(0.85, 100, 1.0, 1)),
        (2, measured(0.88, 200, 1.0, 2)),
        (3, measured(0.87, 200, 1.0, 3)),
    ]
    assert front_of(*rows, constraints=("accuracy >= 0.86",)).choose(best="size_bytes").number == 2
    assert front_of(*rows).choose(best="latency_ms").number == 2  # then accuracy


def test_knee_covers_most_of_the_useful_region() -> None:
    front = study()
    cover = {
        p.number: max(0.0, 0.03 - front.drop(p))
        * (1.05 - p.values["size_ratio"])
        * (1.05 - p.values["latency_ratio"])
        for p in front
    }
    assert front.knee().number == max(cover, key=lambda n: cover[n])


def test_table_csv_and_json(tmp_path: Path) -> None:
    front = study()
    table = front.table()
    assert list(table.columns)[:15] == [
        "number", "parent", "rung", "front", "feasible", "trusted", "tie",
        "accuracy", "accuracy_drop", "size_bytes", "size_ratio", "latency_ms", "latency_ratio",
        "macs", "params",
    ]  # fmt: skip
    assert list(table.columns)[15:] == [
        "accuracy_error", "accuracy_drop_error", "latency_ms_error", "latency_ratio_error",
        "summary", "plan", "sha256",
    ]  # fmt: skip
    assert list(table["number"]) == [0, 1, 3, 2, 4]  # equal accuracy: the smaller first
    assert list(front_of().table().columns) == list(table.columns)
    front.to_csv(tmp_path / "front.csv")
    read = pd.read_csv(tmp_path / "front.csv")
    assert read["latency_ms"].tolist() == table["latency_ms"].tolist()
    assert [file.name for file in tmp_path.iterdir()] == ["front.csv"]
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        front.to_csv(tmp_path / "absent" / "front.csv")
    data = json.loads(json.dumps(front.to_json(), allow_nan=False))
    assert [p["number"] for p in data["points"]] == [0, 1, 3, 2, 4]
    assert CompressionPlan.from_json(data["points"][1]["plan"]) == plan(1)
    assert "<table>" in front._repr_html_()


def test_summary_says_what_was_done() -> None:
    changed = CompressionPlan(
        {"a": 8, "b": 24},
        {"a": LayerChoice(8, 8, "svd", (3,)), "b": LayerChoice(8, 8), "c": LayerChoice()},
    )
    assert summary(changed, FULL) == "keep 0.62 · int8 2/3 · rank 1 layer"
    assert summary(FULL, FULL) == "unchanged"
    sparse = CompressionPlan({}, {"a": LayerChoice(sparsity=50), "b": LayerChoice(16, 16)})
    assert summary(sparse, FULL) == "16-bit 1/2 · zeros 1 layer"


def test_answers_are_the_best_within_each_loss() -> None:
    front = study()
    found = {(a.within, a.best): a.point.number for a in answers(front)}
    assert found[0.005, "latency_ms"] == 1
    assert found[0.01, "latency_ms"] == 2
    assert found[0.01, "size_bytes"] == 3
    assert found[0.05, "size_bytes"] == 4
    assert conclusion(front) == "Best within 0.5 points: 0.60× latency at 0.30× bytes (trial 1)"
    lines = markdown(front).splitlines()
    assert lines[0] == f"**{conclusion(front)}**"
    rows = [line.split(" | ") for line in lines if line.startswith(("| Fast", "| Small"))]
    assert sorted(int(row[1]) for row in rows) == sorted(set(found.values()))  # a row a point
    asked = {int(row[1]): row[0].removeprefix("| ") for row in rows}
    assert asked[1] == "Fastest and smallest within 0.5 points"
    assert lines[-1].startswith("| Baseline | | 90.00 % ")
    assert conclusion(front_of()) == "No measured point meets the constraints"


def test_a_confirmed_baseline_is_the_one_shown() -> None:
    again = Evaluation(FULL, "confirm", BASE | {"accuracy": 0.91})
    first = Evaluation(FULL, "measure", BASE)
    front = ParetoFront([(0, first), (0, again)], OBJECTIVES, (), first)
    assert front.baseline is again
    assert front.baseline_number == 0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("size_bytes", 302_999, "303 kB"), ("size_bytes", 1_097_000, "1.10 MB"),
        ("size_bytes", 950, "950 B"), ("accuracy", 0.9148, "91.48 %"),
        ("latency_ms", 0.3512, "0.351 ms"), ("latency_ms", 123.4, "123 ms"),
        ("macs", 40.8e6, "40.8 M"), ("size_ratio", 0.2217, "0.222×"), ("loss", None, "–"),
    ],
)  # fmt: skip
def test_legible(name: str, value: float | None, text: str) -> None:
    assert legible(name, value) == text
