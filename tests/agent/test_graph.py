"""The agent's own reader of ONNX files, against the onnx library."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from torch import nn

from paretune.agent import graph as module
from paretune.agent.graph import CONTROL_FLOW, DOMAINS, MICROSOFT, inspect
from paretune.errors import CandidateError
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.target import Bits


def model(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    graph = helper.make_graph(list(nodes), "g", ports[:1], ports[1:], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu() -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"])


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.ones((3, 3), dtype=np.float32), name)


def external() -> TensorProto:
    tensor = weight()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def branch() -> onnx.NodeProto:
    inner = model(relu()).graph
    return helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    indices = numpy_helper.from_array(np.array([0], dtype=np.int64), "i")
    return helper.make_sparse_tensor(tensor, indices, [9])


def with_sparse() -> onnx.ModelProto:
    made = model(relu())
    made.graph.sparse_initializer.append(sparse(external()))
    return made


def with_function() -> onnx.ModelProto:
    made = model(relu())
    opsets = [helper.make_opsetid("", 17)]
    made.functions.append(helper.make_function("", "F", ["x"], ["y"], [relu()], opsets))
    return made


def with_location_only() -> onnx.ModelProto:
    tensor = weight()
    tensor.data_location = TensorProto.EXTERNAL
    return model(relu(), weights=(tensor,))


def with_training() -> onnx.ModelProto:
    made = model(relu())
    made.training_info.add()
    return made


REFUSED = {
    "external initializer": (lambda: model(relu(), weights=(external(),)), "another file"),
    "external by its location only": (with_location_only, "another file"),
    "external sparse initializer": (with_sparse, "another file"),
    "external constant": (
        lambda: model(helper.make_node("Constant", [], ["y"], value=external())),
        "another file",
    ),
    "external sparse constant": (
        lambda: model(helper.make_node("Constant", [], ["y"], sparse_value=sparse(external()))),
        "another file",
    ),
    "external in a list": (
        lambda: model(helper.make_node("Any", [], ["y"], values=[weight(), external()])),
        "another file",
    ),
    "If": (lambda: model(branch()), "control flow"),
    "Loop without a body": (lambda: model(helper.make_node("Loop", ["x"], ["y"])), "'Loop'"),
    "Scan": (lambda: model(helper.make_node("Scan", ["x"], ["y"])), "'Scan'"),
    "a graph in a harmless operator": (
        lambda: model(helper.make_node("Relu", ["x"], ["y"], body=model(relu()).graph)),
        "control flow",
    ),
    "own domain": (
        lambda: model(helper.make_node("Steal", ["x"], ["y"], domain="evil.ops")),
        "'evil.ops'",
    ),
    "another operator of the runtime": (
        lambda: model(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")),
        "EPContext",
    ),
    "functions": (with_function, "functions"),
    "training": (with_training, "training"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_network_is_refused_by_name(case: str) -> None:
    make, word = REFUSED[case]
    with pytest.raises(CandidateError, match=word) as caught:
        inspect(make().SerializeToString(), "m.onnx")
    assert str(caught.value).startswith("m.onnx: ") and "\n" not in str(caught.value)


def test_an_opset_of_another_domain_is_refused() -> None:
    made = model(relu())
    made.opset_import.append(helper.make_opsetid("evil.ops", 1))
    with pytest.raises(CandidateError, match="evil"):
        inspect(made.SerializeToString())


def test_large_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(
        *(relu() for _ in range(30)), weights=(weight("a"), weight("b"))
    ).SerializeToString()
    assert inspect(data).nodes == 30 and inspect(data).tensors == 2
    for name, most in (("MOST_NODES", 29), ("MOST_TENSORS", 1), ("MOST_FIELDS", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, most)
            with pytest.raises(CandidateError, match=f"{most}"):
                inspect(data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, b"PK\x03\x04", bytes(range(256))])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(CandidateError, match="not an ONNX file"):
        inspect(data)


@pytest.mark.parametrize("format", ["qoperator", "qdq"])
def test_our_own_files_are_taken(format: str, tmp_path: Path) -> None:
    """Every layer kind, float32 and int8: as many nodes and tensors as the onnx library counts."""
    layers = [nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8), nn.SiLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    target, example = OnnxRuntimeCpu(format=format), torch.randn(2, 3, 8, 8)
    for bits in ({}, {name: Bits(8, 8) for name in ("0", "2", "6")}):
        target.export(network, example[:1], bits, [example.numpy()], tmp_path / "m.onnx")
        data = (tmp_path / "m.onnx").read_bytes()
        made = onnx.load_model_from_string(data)
        constants = sum(a.HasField("t") for n in made.graph.node for a in n.attribute)
        found = inspect(data)
        assert found.nodes == len(made.graph.node)
        assert found.tensors == len(made.graph.initializer) + constants


def dangerous(made: onnx.ModelProto) -> bool:
    """The same question, asked of the onnx library's own reading."""

    def tensor(t: TensorProto) -> bool:
        return t.data_location != TensorProto.DEFAULT or bool(t.external_data)

    def attribute(a: AttributeProto) -> bool:
        graphs = a.HasField("g") or bool(a.graphs)
        parts = [a.sparse_tensor, *a.sparse_tensors]
        tensors = [a.t, *a.tensors, *(s.values for s in parts), *(s.indices for s in parts)]
        return graphs or any(tensor(t) for t in tensors)

    def node(n: onnx.NodeProto) -> bool:
        foreign = n.domain not in DOMAINS
        foreign |= n.domain == "com.microsoft" and n.op_type not in MICROSOFT
        return foreign or n.op_type in CONTROL_FLOW or any(attribute(a) for a in n.attribute)

    graph = made.graph
    tensors = [*graph.initializer]
    for part in graph.sparse_initializer:
        tensors += [part.values, part.indices]
    return (
        any(o.domain not in DOMAINS for o in made.opset_import)
        or bool(made.functions or made.training_info)
        or any(tensor(t) for t in tensors)
        or any(node(n) for n in graph.node)
    )


SEEDS = [
    *(make().SerializeToString() for make, _ in REFUSED.values()),
    model(relu(), weights=(weight(),)).SerializeToString(),
    model(helper.make_node("Constant", [], ["y"], value=weight())).SerializeToString(),
]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in from another file."""
    out = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        at = draw.randrange(len(out) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(out):
            out[at] = draw.randrange(256)
        elif kind == 1:
            del out[at : at + draw.randrange(1, 8)]
        elif kind == 2:
            out[at:at] = out[at : at + draw.randrange(1, 40)]
        elif kind == 3:
            other = draw.choice(SEEDS)
            start = draw.randrange(len(other))
            out[at:at] = other[start : start + draw.randrange(1, 60)]
        else:
            out[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 6)))
    return bytes(out)


@settings(max_examples=1500, deadline=None)
@given(seed=st.integers(0, 2**48))
def test_what_passes_is_harmless_by_the_onnx_library_too(seed: int) -> None:
    """Mutated files: the reader gives an answer or its refusal, nothing else; and what it lets
    pass, the onnx library (which ONNX Runtime's own reader is the same code as) finds harmless."""
    draw = random.Random(seed)
    data = mutated(draw.choice(SEEDS), draw)
    try:
        inspect(data)
    except CandidateError:
        return
    try:
        made = onnx.load_model_from_string(data)
    except Exception:
        return
    assert not dangerous(made)
