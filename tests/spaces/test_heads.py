"""Attention heads: found by structure, cut whole, with the numbers that silencing them gives."""

import copy

import numpy as np
import pytest
import torch
from small_transformers import TRANSFORMERS, build_transformer

from paretune.operators.compress import Compressor
from paretune.spaces.attention import SelfAttention, rewrite
from paretune.spaces.discover import discover
from paretune.spaces.heads import head_groups
from paretune.spaces.surgery import cut
from paretune.targets.onnx_export import export_model, write_model
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu

READERS = {
    "torch": ["attention.out_proj"],
    "torch_weights": ["attention.out_proj"],
    "encoder": ["encoder.layers.0.self_attn.out_proj", "encoder.layers.1.self_attn.out_proj"],
    "fused": ["blocks.0.attn.proj", "blocks.1.attn.proj"],
    "fused_by_head": ["blocks.0.attn.proj", "blocks.1.attn.proj"],
    "separate": ["dense"],
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_rewritten_network_computes_the_same(name: str) -> None:
    network, _ = build_transformer(name)
    x = torch.randn(3, 6, 16)
    rewritten = rewrite(network, x[:1])
    torch.testing.assert_close(rewritten(x), network(x), atol=2e-6, rtol=1e-5)
    assert all(type(m) is not torch.nn.MultiheadAttention for m in rewritten.modules())


@pytest.mark.parametrize("batch_first", [True, False])
def test_masks_and_weights_are_those_of_torch(batch_first: bool) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    ours = SelfAttention(theirs).eval()
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
    for options in (
        {"key_padding_mask": padding},
        {"attn_mask": mask},
        {"attn_mask": mask, "is_causal": True, "need_weights": False},
        {"attn_mask": mask, "key_padding_mask": padding.float(), "need_weights": False},
        {"average_attn_weights": False},
    ):
        expected, found = theirs(x, x, x, **options), ours(x, x, x, **options)
        torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-5)
        if expected[1] is not None:
            torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_cut_heads_equal_silent_heads(name: str) -> None:
    network, example = build_transformer(name)
    space = discover(network, example)
    rewritten = rewrite(network, example)
    heads = [g for g in space.groups if g.unit == "heads"]
    assert [g.consumers() for g in heads] == [(r,) for r in READERS[name]]
    kept = {g.name: [1] if i == 0 else [0, 2, 3] for i, g in enumerate(heads)}
    small, silent = copy.deepcopy(rewritten), copy.deepcopy(rewritten)
    cut(small, heads, kept)
    with torch.no_grad():
        for group in heads:
            weight = silent.get_submodule(group.consumers()[0]).weight
            for head in set(range(4)) - set(kept[group.name]):
                weight[:, 4 * head : 4 * head + 4] = 0
    x = torch.randn(3, 6, 16)
    torch.testing.assert_close(small(x), silent(x), atol=1e-5, rtol=1e-4)
    rows = {g.name: small.get_submodule(g.name).out_features for g in heads}
    parts = 1 if name == "separate" else 3
    assert rows == {g.name: parts * 4 * len(kept[g.name]) for g in heads}


def test_the_heads_that_stay_are_computed_as_in_numpy() -> None:
    """Attention of heads 0 and 2 by hand from the original parameters."""
    network, example = build_transformer("torch")
    w = network.attention.in_proj_weight.detach().numpy().astype(np.float64)
    b = network.attention.in_proj_bias.detach().numpy()
    out = network.attention.out_proj.weight.detach().numpy()
    x = np.random.default_rng(0).normal(size=(6, 16))
    expected = np.tile(network.attention.out_proj.bias.detach().numpy(), (6, 1)).astype(float)
    for head in (0, 2):
        rows = [np.arange(16 * part + 4 * head, 16 * part + 4 * head + 4) for part in range(3)]
        q, k, v = (x @ w[r].T + b[r] for r in rows)
        scores = np.exp(q @ k.T / 2.0)
        weights = scores / scores.sum(1, keepdims=True)
        expected += weights @ v @ out[:, 4 * head : 4 * head + 4].T
    small = rewrite(network, example)
    groups, _ = head_groups(small, example)
    cut(small, groups, {"attention.in_proj": [0, 2]})
    found = small.attention(torch.tensor(x, dtype=torch.float32)[None])[0][0]
    np.testing.assert_allclose(found.detach(), expected, atol=1e-5)


def test_heads_that_cannot_be_cut_are_left_alone_with_the_reason() -> None:
    network, example = build_transformer("stubborn")
    space = discover(network, example)
    assert "blocks.0.attn.qkv" in space.full and "blocks.1.attn.qkv" not in space.full
    assert "heads" in space.frozen["heads of blocks.1.attn.qkv"]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_cut_transformer_is_factorised_quantised_and_exported(name: str, tmp_path) -> None:
    network, example = build_transformer(name)
    space = discover(network, example)
    genotype = {n: 1 for n in space.parameters if n.startswith("keep:")}
    genotype |= {n: 1 for n in space.parameters if n.startswith("rank:")}
    inputs = torch.randn(16, 6, 16)
    made = Compressor(network, example, space, inputs).compress(space.plan(genotype))
    assert sum(p.numel() for p in made.network.parameters()) < sum(
        p.numel() for p in network.parameters()
    )
    write_model(export_model(made.network, example), tmp_path / "small.onnx")
    target = OnnxRuntimeCpu(calibration_examples=16)
    found = target.load(tmp_path / "small.onnx").predict(inputs.numpy())
    with torch.no_grad():
        expected = made.network(inputs).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    eight = space.plan(genotype | {n: 1 for n in space.parameters if n.startswith("bits:")})
    made = Compressor(network, example, space, inputs).compress(eight)
    assert {b.weight for n, b in made.bits.items() if n != "head"} == {8}
    target.export(made.network, example, made.bits, [inputs.numpy()], tmp_path / "int8.onnx")
    near = target.load(tmp_path / "int8.onnx").predict(inputs.numpy())
    assert np.abs(near - expected).max() < 0.1 * np.abs(expected).max()


def test_a_vision_transformer_of_torchvision(tmp_path) -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48,
        num_classes=5,
    ).eval()  # fmt: skip
    example = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        network.heads.head.weight.normal_()
    space = discover(network, example)
    layer = "encoder.layers.encoder_layer_0"
    assert space.full[f"{layer}.self_attention.in_proj"] == 4
    assert space.full[f"{layer}.mlp.0"] == 48
    assert f"{layer}.self_attention.out_proj" in space.identity.layers
    plan = space.plan({n: 1 for n in space.parameters if n.startswith("keep:")})
    inputs = torch.randn(8, 3, 16, 16)
    small = Compressor(network, example, space, inputs).compress(plan).network
    attention = small.get_submodule(f"{layer}.self_attention")
    assert attention.in_proj.out_features == 3 * 8 * plan.groups[f"{layer}.self_attention.in_proj"]
    write_model(export_model(small, example), tmp_path / "vit.onnx")
    found = OnnxRuntimeCpu().load(tmp_path / "vit.onnx").predict(inputs.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, small(inputs).numpy(), atol=1e-4)
