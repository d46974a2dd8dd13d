"""Plans: JSON round trip, fingerprint, refusals."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.spaces.plan import CompressionPlan, LayerChoice

names = st.text("abc.123", min_size=1, max_size=8)
count = st.integers(1, 4096)
choices = st.one_of(
    st.builds(LayerChoice, count, count),
    st.builds(lambda w, a, r: LayerChoice(w, a, "svd", (r,)), count, count, count),
    st.builds(
        lambda w, a, r: LayerChoice(w, a, "tucker2", r), count, count, st.tuples(count, count)
    ),
)
plans = st.builds(CompressionPlan, st.dictionaries(names, count), st.dictionaries(names, choices))
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=8,
)


@given(plans)
@settings(max_examples=60, deadline=None)
def test_json_round_trip(plan: CompressionPlan) -> None:
    back = CompressionPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert back == plan
    assert back.fingerprint == plan.fingerprint
    assert len(str(plan).splitlines()) == len(plan.groups) + len(plan.layers)


@given(plans, plans)
@settings(max_examples=60, deadline=None)
def test_same_fingerprint_exactly_when_equal(a: CompressionPlan, b: CompressionPlan) -> None:
    assert (a.fingerprint == b.fingerprint) == (a == b)


def test_fingerprint_does_not_depend_on_order() -> None:
    a = CompressionPlan({"x": 1, "y": 2}, {})
    b = CompressionPlan({"y": 2, "x": 1}, {})
    assert a.fingerprint == b.fingerprint


@given(junk)
@settings(max_examples=100, deadline=None)
def test_junk_is_refused_in_one_line(data: object) -> None:
    with pytest.raises(InputError) as caught:
        CompressionPlan.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 2}, "version"),
        ({"extra": 1}, "extra"),
        ({"groups": {"a": 0}}, "positive"),
        ({"groups": {"a": True}}, "positive"),
        ({"groups": {"a": 2.0}}, "positive"),
        ({"layers": {"a": {"method": "magic"}}}, "magic"),
        ({"layers": {"a": {"method": "svd", "ranks": [1, 2]}}}, "ranks"),
        ({"layers": {"a": {"weight_bits": 7.5}}}, "7.5"),
        ({"layers": {"a": {"bits": 8}}}, "bits"),
    ],
)
def test_each_mistake_is_named(change: dict, word: str) -> None:
    data = {"version": 1, "groups": {}, "layers": {}} | change
    with pytest.raises(InputError, match=word):
        CompressionPlan.from_json(data, "plan.json")
