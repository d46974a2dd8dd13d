"""The packed container: bit-exact round trips, real savings, and hostile bytes."""

import hashlib
import struct
import zlib

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from paretune.errors import CandidateError, InputError
from paretune.targets.archive import MAGIC, decode, encode
from paretune.targets.tensor_code import Reader, decode_tensor, encode_tensor


def round_trip(values: np.ndarray) -> int:
    """Bytes of the code of ``values``, after checking that it gives them back bit for bit."""
    code = encode_tensor(values)
    reader = Reader(code, "test")
    found = decode_tensor(reader, values.shape, values.dtype)
    assert reader.place == len(code)
    assert found.dtype == values.dtype and found.shape == values.shape
    assert found.tobytes() == np.ascontiguousarray(values).tobytes()
    return len(zlib.compress(code, 9))


@given(
    hnp.arrays(
        st.sampled_from(
            [np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64, np.float64]
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=5, min_side=0),
    )
)
@settings(max_examples=200, deadline=None)
def test_any_tensor_comes_back_bit_for_bit(values: np.ndarray) -> None:
    round_trip(values)


@given(
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(2, 8),
    st.floats(0, 0.9),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_quantised_and_sparse_weights_come_back_bit_for_bit(
    out: int, into: int, bits: int, zeros: float, codebook: bool, seed: int
) -> None:
    source = np.random.default_rng(seed)
    scale = source.uniform(1e-4, 1, (out, 1)).astype(np.float32)
    codes = source.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, into))
    values = codes.astype(np.float32) * scale
    if codebook:
        values = source.normal(size=2**bits).astype(np.float32)[codes + 2 ** (bits - 1)]
    values[source.random(values.shape) < zeros] = source.choice([0.0, -0.0])
    round_trip(values)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_steps_cost_their_bits_and_a_scale(bits: int) -> None:
    """Uniformly drawn codes carry ``bits`` bits of entropy each: no lossless code is shorter."""
    source = np.random.default_rng(bits)
    codes = source.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), (32, 288))
    scale = source.uniform(0.001, 0.1, (32, 1)).astype(np.float32)
    entropy = codes.size * np.log2(2**bits - 1) / 8
    size = round_trip(codes.astype(np.float32) * scale)
    assert entropy <= size <= codes.size * bits / 8 * 1.02 + 32 * 9 + 32


def test_minus_zero_does_not_spoil_the_steps() -> None:
    source = np.random.default_rng(0)
    codes = source.integers(-3, 4, (16, 144)).astype(np.float32)
    values = codes * source.uniform(0.01, 0.1, (16, 1)).astype(np.float32)
    values[(codes == 0) & (source.random(codes.shape) < 0.5)] = -0.0
    assert round_trip(values) < codes.size * 3.1 / 8 + 16 * 9 + 32


def test_codebooks_and_zeros_cost_what_they_hold() -> None:
    source = np.random.default_rng(1)
    table = source.normal(size=8).astype(np.float32)
    values = table[source.integers(0, 8, (64, 144))]
    assert round_trip(values) < values.size * 3 / 8 * 1.02 + 32 + 32
    dense = source.normal(size=(64, 144)).astype(np.float32)
    dense[source.random(dense.shape) < 0.9] = 0
    assert round_trip(dense) < values.size * (0.47 / 8 + 0.1 * 4) * 1.05


def quantised_model(seed: int = 0, bits: int = 3) -> onnx.ModelProto:
    source = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        codes = source.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.float32)
        return codes * source.uniform(0.01, 0.1, (shape[0], 1, 1, 1)).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Conv", ["y", "w2"], ["output"]),
    ]
    parts = {"w1": weight(16, 3, 3, 3), "w2": weight(8, 16, 3, 3)}
    parts["b1"] = source.normal(size=16).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 8, 6, 6])],
        [numpy_helper.from_array(v, n) for n, v in parts.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def archived(tmp_path, model: onnx.ModelProto) -> tuple[bytes, bytes]:
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path))
    return path.read_bytes(), encode(path)


def test_the_decoded_file_is_the_same_model(tmp_path) -> None:
    model = quantised_model()
    data, packed = archived(tmp_path, model)
    again = decode(packed)
    assert len(packed) < 0.3 * len(data)
    found = onnx.load_model_from_string(again)
    onnx.checker.check_model(found)
    for before, after in zip(model.graph.initializer, found.graph.initializer, strict=True):
        assert before.name == after.name
        assert numpy_helper.to_array(before).tobytes() == numpy_helper.to_array(after).tobytes()
    assert found.graph.node == model.graph.node and found.opset_import == model.opset_import
    x = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    outputs = [
        onnxruntime.InferenceSession(d, providers=["CPUExecutionProvider"]).run(None, {"input": x})
        for d in (data, again)
    ]
    assert np.array_equal(outputs[0][0], outputs[1][0])
    assert encode_again(tmp_path, again) == packed


def encode_again(tmp_path, data: bytes) -> bytes:
    path = tmp_path / "again.onnx"
    path.write_bytes(data)
    return encode(path)


def test_packed_types_and_typed_fields_survive(tmp_path) -> None:
    model = quantised_model()
    odd = np.arange(-8, 7, dtype=np.int8)
    four = helper.make_tensor("four", TensorProto.INT4, [15], odd)
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [3], [1.5, -2.0, 0.25])
    half = helper.make_tensor("half", TensorProto.BFLOAT16, [2, 2], [1.0, 2.0, 3.0, 4.0])
    number = helper.make_tensor("number", TensorProto.INT64, [], [7])
    model.graph.initializer.extend([four, typed, half, number])
    _, packed = archived(tmp_path, model)
    found = {t.name: t for t in onnx.load_model_from_string(decode(packed)).graph.initializer}
    for tensor in (four, typed, half, number):
        expected = numpy_helper.to_array(tensor)
        again = numpy_helper.to_array(found[tensor.name])
        assert again.dtype == expected.dtype and again.tobytes() == expected.tobytes()


def signed(rest: bytes) -> bytes:
    return MAGIC + hashlib.sha256(rest).digest() + rest


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_noise_is_refused(noise: bytes) -> None:
    for data in (noise, MAGIC + noise, signed(noise)):
        with pytest.raises(InputError):
            decode(data)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_forged_body_is_refused_or_a_model(tmp_path_factory, data) -> None:
    """Bytes of the body are changed and everything is signed anew, as an attacker would."""
    _, packed = archived(tmp_path_factory.getbasetemp(), quantised_model())
    rest = packed[40:]
    body = bytearray(zlib.decompress(rest[16:]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 1, 7]))
    body = body[: len(body) - cut]
    forged = struct.pack("<Q", len(body)) + rest[8:16] + zlib.compress(bytes(body))
    try:
        made = decode(signed(forged))
    except InputError as error:
        assert "archive" in str(error)
    else:
        onnx.load_model_from_string(made)


def test_every_flipped_byte_is_noticed_and_bombs_are_not_unpacked(tmp_path) -> None:
    _, packed = archived(tmp_path, quantised_model())
    for place in range(0, len(packed), 7):
        flipped = packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]
        with pytest.raises(InputError):
            decode(flipped)
    with pytest.raises(InputError, match="unpacks to"):
        decode(packed, most_bytes=1000)
    bomb = zlib.compress(bytes(50_000_000))
    with pytest.raises(InputError, match="damaged"):
        decode(signed(struct.pack("<QQ", 1000, 0) + bomb))
    frame = helper.make_model(
        helper.make_graph([], "g", [], [], [TensorProto(data_type=1, dims=[2**40], name="big")])
    ).SerializeToString()
    body = struct.pack("<Q", len(frame)) + frame
    with pytest.raises(InputError, match="damaged"):
        decode(signed(struct.pack("<QQ", len(body), 100) + zlib.compress(body)))


def test_other_files_are_named(tmp_path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not onnx at all")
    with pytest.raises(CandidateError, match=r"x\.onnx"):
        encode(tmp_path / "x.onnx")
    with pytest.raises(InputError, match="not a paretune archive"):
        decode(b"PK\x03\x04", "front.zip")
    with pytest.raises(InputError, match="version"):
        decode(MAGIC[:-1] + b"\x09" + bytes(100))
