"""Conditions: Python's own semantics are the reference; bad text gives one clear line."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.objectives.expression import Expression
from paretune.objectives.objective import QUANTITIES

NAMES = ("loss", "accuracy", "size_ratio", "latency_ms", "macs")
OPERATORS = ("<", "<=", ">", ">=", "==", "!=")
NUMBERS = st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.75, 0.9])


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    name, sign, bound = (
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from(OPERATORS)),
        draw(NUMBERS),
    )
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return f"{name} {sign} {bound}"
    if kind == 1:
        return f"{bound}{sign}{name}"
    return f"{bound} {draw(st.sampled_from(OPERATORS))} {name} {sign} {draw(NUMBERS)}"


EXPRESSIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=6,
)
VALUES = st.fixed_dictionaries({name: st.one_of(NUMBERS, st.floats(0.01, 1)) for name in NAMES})


@given(EXPRESSIONS, VALUES)
@settings(max_examples=400, deadline=None)
def test_agrees_with_python(text: str, values: dict[str, float]) -> None:
    try:
        expression = Expression.parse(text)
    except InputError as error:
        assert "never hold" in str(error) or "contradicts" in str(error)
        assume(False)
        return
    expected = eval(text, {"__builtins__": {}}, dict(values))
    assert expression.holds(values) is bool(expected)
    assert (expression.violation(values) <= 0) is bool(expected)
    assert math.isfinite(expression.violation(values))
    assert bool(expression.failing(values)) is not bool(expected)
    again = Expression.parse(str(expression))
    assert again.holds(values) is bool(expected)


@given(st.lists(st.tuples(st.sampled_from(OPERATORS), NUMBERS), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_contradiction_is_refused_exactly_when_nothing_meets_it(
    parts: list[tuple[str, float]],
) -> None:
    text = " and ".join(f"accuracy {sign} {bound}" for sign, bound in parts)
    bounds = sorted({bound for _, bound in parts} | {0.0, 1.0})
    middles = [(a + b) / 2 for a, b in zip(bounds, bounds[1:], strict=False)]
    possible = any(
        eval(text, {"__builtins__": {}}, {"accuracy": value}) for value in [*bounds, *middles]
    )
    if possible:
        Expression.parse(text)
    else:
        with pytest.raises(InputError, match="contradicts itself|never hold"):
            Expression.parse(text)


@given(
    st.one_of(st.text(max_size=60), st.text("()<>=!. 0159eEkBMms%pt_andornotaccuracy", max_size=60))
)
@settings(max_examples=600, deadline=None)
def test_random_text_gives_input_errors_only(text: str) -> None:
    try:
        expression = Expression.parse(text)
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
    else:
        expression.holds({})


@pytest.mark.parametrize(
    "text", ["(" * 5000, "not " * 400 + "loss < 1", "(" * 300 + "loss<1" + ")" * 300, "a" * 1999]
)
def test_deep_or_long_text_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        Expression.parse(text)


@pytest.mark.parametrize(
    ("text", "name", "bound"),
    [
        ("size_bytes < 300kB", "size_bytes", 300_000),
        ("size_bytes < 1.5MB", "size_bytes", 1_500_000),
        ("size_bytes < 2KiB", "size_bytes", 2048),
        ("latency_ms < 250us", "latency_ms", 0.25),
        ("latency_ms < 2s", "latency_ms", 2000),
        ("accuracy_drop <= 1%", "accuracy_drop", 0.01),
        ("accuracy_drop <= 0.5pt", "accuracy_drop", 0.005),
        ("size_ratio < 30%", "size_ratio", 0.3),
        ("macs <= 20M", "macs", 20e6),
        ("accuracy_drop <= -1e-3", "accuracy_drop", -0.001),
    ],
)
def test_units(text: str, name: str, bound: float) -> None:
    (low, high) = Expression.parse(text).bounds()[name]
    assert low == -math.inf
    assert high == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy >= 95", "did you mean 0.95?"),
        ("acuracy >= 0.9", "did you mean 'accuracy'?"),
        ("accuracy >= 1.2", "share between 0 and 1"),
        ("latency_ms < 0", "can never hold; latency_ms is always positive"),
        ("accuracy > 0.9 and accuracy < 0.8", "contradicts itself"),
        ("0.9 < accuracy < 0.8", "contradicts itself"),
        ("accuracy_drop <= 1", "write 0.01"),
        ("accuracy = 0.9", "write == for equality at column 10: 'accuracy ^= 0.9'"),
        ("accuracy < = 0.9", "write <= without a space at column 12: 'accuracy < ^= 0.9'"),
        ("accuracy_drop <= 1 pt", "a unit without a space before it (1pt, 300kB) or the end at"),
        ("accuracy >", "at column 11: 'accuracy >^'"),
        ("accuracy >= 0.9 size_ratio < 1", "expected 'and', 'or' or the end at column 17"),
        ("latency_ms < 3kB", "does not take the unit 'kB' (units: us, µs, ms, s)"),
        ("energy_mj < 5mJ", "does not take the unit 'mJ' at column 13"),
        ("size_ratio < latency_ratio", "one side must be a name, the other a number"),
        ("__import__('os')", "unexpected sign"),
        ("", "empty"),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Expression.parse(text, "constraints[0]")
    assert str(caught.value).startswith("constraints[0]: ")
    assert message in str(caught.value)


def test_several_targets() -> None:
    known = ["accuracy", "latency_ms_openvino_cpu", "latency_ms_onnxruntime_cpu"]
    with pytest.raises(InputError, match="several targets; write one of: latency_ms_openvino_cpu"):
        Expression.parse("latency_ms < 2", known=known)
    goal = Expression.parse("latency_ms_openvino_cpu < 2000us", known=known)
    assert goal.holds({"latency_ms_openvino_cpu": 1.9})


def test_a_missing_value_never_holds_not_even_negated() -> None:
    for text in ("latency_ms < 2", "not latency_ms < 2", "latency_ms != 2"):
        goal = Expression.parse(text)
        assert not goal.holds({"accuracy": 0.9})
        assert not goal.holds({"latency_ms": math.nan})
        assert goal.violation({"accuracy": 0.9}) > 0
    assert Expression.parse("latency_ms < 2 or accuracy > 0.8").holds({"accuracy": 0.9})
    with pytest.raises(InputError, match="'latency_ms' was not measured; known: accuracy"):
        Expression.parse("latency_ms < 2").require(["accuracy"])


def test_violation_grows_with_distance_and_adds_up() -> None:
    goal = Expression.parse("accuracy >= 0.9 and size_ratio <= 0.5")
    assert goal.violation({"accuracy": 0.8, "size_ratio": 0.4}) == pytest.approx(1.0)
    assert goal.violation({"accuracy": 0.8, "size_ratio": 1.0}) == pytest.approx(2.0)
    assert goal.violation({"accuracy": 0.95, "size_ratio": 0.4}) == pytest.approx(-0.2)
    either = Expression.parse("accuracy >= 0.9 or size_ratio <= 0.5")
    assert either.violation({"accuracy": 0.8, "size_ratio": 1.5}) == pytest.approx(1.0)


def test_every_quantity_can_be_named() -> None:
    for name in QUANTITIES:
        assert Expression.parse(f"{name} > 0.5").names == (name,)
