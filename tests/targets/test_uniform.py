"""Uniform quantisation against ONNX Runtime's own operators, bit for bit, and scipy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize_scalar

from paretune.errors import CandidateError, InputError
from paretune.targets.clipping import RANGES, clip_rows, entropy_limit
from paretune.targets.onnx_session import open_session
from paretune.targets.target import Grid
from paretune.targets.uniform import limits, to_floats, to_integers, weight_grid

KINDS = {
    "int8": (TensorProto.INT8, np.int8, -128, 127),
    "uint8": (TensorProto.UINT8, np.uint8, 0, 255),
    "int4": (TensorProto.INT4, ml_dtypes.int4, -8, 7),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4, 0, 15),
}


def onnx_round_trip(
    weight: np.ndarray, scale: np.ndarray, zero: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """QuantizeLinear, then DequantizeLinear, along axis 0, run by ONNX Runtime."""
    proto, dtype, _, _ = KINDS[kind]
    constants = [
        numpy_helper.from_array(scale, "scale"),
        numpy_helper.from_array(zero.astype(dtype), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=0),
        helper.make_node("Cast", ["q"], ["i"], to=TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, weight.shape)],
        [
            helper.make_tensor_value_info("i", TensorProto.INT32, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = open_session(model.SerializeToString(), level="ORT_DISABLE_ALL")
    integers, real = session.run(None, {"x": weight})
    return integers, real


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 30))
def test_equals_onnx_bit_for_bit(kind: str, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    _, _, low, high = KINDS[kind]
    scale = (rng.random(5) * 0.1 + 0.01).astype(np.float32)
    zero = rng.integers(low, high + 1, 5) if low == 0 else np.zeros(5, dtype=int)
    weight = (rng.standard_normal((5, 3, 2)) * spread).astype(np.float32)
    halves = (rng.integers(-9, 10, (5, 3, 2)) + np.float32(0.5)) * scale[:, None, None]
    weight = np.where(rng.random(weight.shape) < 0.5, weight, halves).astype(np.float32)
    integers, real = onnx_round_trip(weight, scale, zero, kind)
    grid = Grid(scale, zero_point=zero if low == 0 else None)
    ours = to_integers(weight, grid, low, high)
    np.testing.assert_array_equal(ours, integers)
    np.testing.assert_array_equal(to_floats(ours, grid), real)


def test_rounds_half_to_even() -> None:
    grid = Grid(np.float32(1).reshape(()))
    given = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 7.5, -9.0]], dtype=np.float32)
    assert to_integers(given, grid, -8, 7).tolist() == [[0, 2, 2, 0, -2, 7, -8]]
    expected, _ = onnx_round_trip(given, np.ones(1, np.float32), np.zeros(1), "int4")
    assert expected.tolist() == [[0, 2, 2, 0, -2, 7, -8]]


@pytest.mark.parametrize("per", ["tensor", "channel", 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
@pytest.mark.parametrize("ranges", RANGES)
def test_every_grid_is_within_half_a_step(
    per: str | int, symmetric: bool, bits: int, ranges: str
) -> None:
    weight = np.random.default_rng(bits).normal(0.3, 1, (6, 4, 2, 2)).astype(np.float32)
    weight[3] = 0
    grid = weight_grid(weight, bits, ranges=ranges, symmetric=symmetric, per=per)
    shape = {"tensor": (), "channel": (6,), 8: (6, 2)}[per]
    assert grid.weight_scale.shape == shape and grid.weight_scale.dtype == np.float32
    assert (grid.zero_point is None) == symmetric
    low, high = limits(bits, symmetric)
    integers = to_integers(weight, grid, low, high)
    assert integers.min() >= low and integers.max() <= high
    inside = (integers > low) & (integers < high)
    error = np.abs(to_floats(integers, grid) - weight).reshape(*shape, -1)
    step = np.broadcast_to(grid.weight_scale[..., None], error.shape).reshape(weight.shape)
    assert (error.reshape(weight.shape)[inside] <= 0.501 * step[inside] + 1e-7).all()
    assert not to_floats(integers, grid)[3].any()
    if ranges == "minmax":
        assert (error.reshape(weight.shape) <= 0.51 * step * (1 if symmetric else 2)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_least_squares_is_near_the_optimum_that_scipy_finds(bits: int) -> None:
    rows = np.random.default_rng(1).standard_normal((4, 300))
    most = limits(bits)[1]
    _, high = clip_rows(rows, 2 * most, "mse", True)

    def error(limit: float, row: np.ndarray) -> float:
        step = limit / most
        return float(np.sum((np.clip(np.rint(row / step), -most, most) * step - row) ** 2))

    for row, limit in zip(rows, high, strict=True):
        starts = np.linspace(0.2, 1, 100) * np.abs(row).max()
        best = min(
            minimize_scalar(error, bounds=(a, b), args=(row,), method="bounded").fun
            for a, b in zip(starts[:-1], starts[1:], strict=True)
        )
        assert error(float(limit), row) <= 1.02 * best
        assert error(float(limit), row) < error(float(np.abs(row).max()), row)


def test_outliers_are_clipped_by_all_but_minmax() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 4000))
    rows[:, 0] = 40
    for ranges in ("percentile", "mse", "entropy"):
        assert (clip_rows(rows, 14, ranges, True)[1] < 20).all(), ranges
    assert (clip_rows(rows, 14, "minmax", True)[1] == 40).all()
    low, high = clip_rows(np.abs(rows), 15, "percentile", False)
    assert (low == 0).all()
    np.testing.assert_allclose(high, np.percentile(np.abs(rows), 99.95, axis=1))


def test_entropy_keeps_a_uniform_histogram_and_cuts_a_tail() -> None:
    assert entropy_limit(np.full(2048, 10), 127) > 2000
    tail = np.zeros(2048, dtype=int)
    tail[:256], tail[-1] = 1000, 1
    assert 240 <= entropy_limit(tail, 127) <= 400


def test_bad_input_is_named() -> None:
    weight = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(InputError, match="'mean'.*did you mean|known"):
        weight_grid(weight, 4, ranges="mean")
    weight[0, 0] = np.nan
    with pytest.raises(CandidateError, match="^fc: its weights are not finite"):
        weight_grid(weight, 4, name="fc")
