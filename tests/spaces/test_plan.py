"""Plans: JSON round trip, fingerprint, refusals."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.spaces.plan import (
    ACTIVATION_BITS,
    METHODS,
    QUANTIZERS,
    WEIGHT_BITS,
    CompressionPlan,
    LayerChoice,
)

names = st.text("abc.123", min_size=1, max_size=8)
count = st.integers(1, 4096)
weight_bits, activation_bits = st.sampled_from(WEIGHT_BITS), st.sampled_from(ACTIVATION_BITS)
factors = st.sampled_from([(None, 0), *METHODS.items()]).flatmap(
    lambda item: st.tuples(st.just(item[0]), st.tuples(*[count] * item[1]))
)
zeros = st.one_of(
    st.just((0, "unstructured")),
    st.tuples(st.integers(1, 99), st.just("unstructured")),
    st.just((50, "2:4")),
)
choices = st.builds(
    lambda w, a, f, q, z: LayerChoice(w, a, *f, q, *z),
    weight_bits,
    activation_bits,
    factors,
    st.sampled_from(QUANTIZERS),
    zeros,
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
        ({"layers": {"a": {"weight_bits": 0}}}, "weight_bits.*0.*known: 32"),
        ({"layers": {"a": {"weight_bits": 8.0}}}, "8.0"),
        ({"layers": {"a": {"activation_bits": 4}}}, "activation_bits"),
        ({"layers": {"a": {"quantizer": "log"}}}, "quantizer.*log"),
        ({"layers": {"a": {"sparsity": 100}}}, "sparsity.*100"),
        ({"layers": {"a": {"sparsity": 0.9}}}, "sparsity.*0.9"),
        ({"layers": {"a": {"sparsity": 60, "pattern": "2:4"}}}, "2:4"),
        ({"layers": {"a": {"bits": 8}}}, "bits"),
    ],
)
def test_each_mistake_is_named(change: dict, word: str) -> None:
    data = {"version": 1, "groups": {}, "layers": {}} | change
    with pytest.raises(InputError, match=word):
        CompressionPlan.from_json(data, "plan.json")
