"""Networks that compute like the quantised files of plans, made and kept for one after another.

The float32 form of a plan (cut, factorised, BatchNorm re-estimated and folded) is kept for plans
that differ from it in bits only. Activation ranges come from the pass that re-estimates BatchNorm,
corrected by what more examples add on the uncompressed network; a plan that changes bits only gets
the very ranges of the exporter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..spaces.plan import CompressionPlan
from ..targets.onnx_export import export_model
from ..targets.onnx_flow import Reader, read_flow
from ..targets.target import Bits
from .compress import Compressor
from .fake_quantise import batchnorms_behind
from .normalise import input_moments, reestimating
from .replay import Replay, is_within
from .rounded import Range, RoundedLayer, fold, wrap_layers

KEPT = 48
"""Float32 forms that are remembered."""
REPLAYED = 128 << 20
"""Bytes of the uncompressed network's results that are kept."""


@dataclass
class _Form:
    """The float32 form of a plan: network with layers wrapped, and each layer's ranges."""

    network: nn.Module
    layers: dict[str, RoundedLayer]
    given: dict[str, Range]
    made: dict[str, Range]


class RoundedNetworks:
    """Rounded torch networks of any plan of one space.

    compressor: carries plans out. example: (1, ...) float32. inputs: the exporter's calibration
    examples (n, ...); the first ``few`` of them re-estimate BatchNorm and give the ranges of cut or
    factorised candidates. reduce_range: 8-bit weights have 7 bits where activations have 8.
    """

    def __init__(
        self,
        compressor: Compressor,
        example: Tensor,
        inputs: Tensor,
        few: int,
        reduce_range: bool = False,
    ) -> None:
        self.compressor, self.space = compressor, compressor.space
        original = compressor.original
        behind = batchnorms_behind(original, example)
        self.pairs = {bn: conv for conv, bn in behind.items()}
        self._flow = read_flow(export_model(original, example))
        self._reduce_range = reduce_range
        self._inputs = inputs[:few]
        self._moments = input_moments(original, self._inputs)
        self._forms: OrderedDict[str, _Form] = OrderedDict()
        self._growth: dict[tuple[str, str], tuple[float, float]] = {}
        self._replay = Replay(original, self._inputs, REPLAYED)
        self._plain: dict[str, tuple[Range, Range]] = {}  # (given, made) of uncompressed layers
        self._learn_ranges(inputs)

    @contextmanager
    def rounded(self, plan: CompressionPlan) -> Iterator[nn.Module]:
        """The network of a canonical plan, to be run without gradients while the context lasts.

        Raises CandidateError when the plan cannot be carried out.
        """
        with torch.no_grad():
            form = self._form(plan)
            self._round(form, plan)
        try:
            yield form.network
        finally:
            for layer in form.layers.values():
                layer.restore()

    def forget(self) -> None:
        """Drop the remembered float32 forms."""
        self._forms.clear()

    def round_only(self, network: nn.Module, plan: CompressionPlan, name: str) -> None:
        """Fold and round one layer of an uncut copy of the network, in place, as ``plan`` says."""
        fold(network, {bn: conv for bn, conv in self.pairs.items() if conv == name})
        layer = wrap_layers(network, {name})[name]
        identity = self._form(self.space.identity)
        form = _Form(network, {name: layer}, identity.given, identity.made)
        self._round(form, plan)

    def _form(self, plan: CompressionPlan) -> _Form:
        whole = {
            n: replace(c, weight_bits=32, activation_bits=32, quantizer="uniform")
            for n, c in plan.layers.items()
        }
        plain = CompressionPlan(plan.groups, whole)
        key = plain.fingerprint
        if key in self._forms:
            self._forms.move_to_end(key)
            return self._forms[key]
        form = self._build(plain)
        self._forms[key] = form
        while len(self._forms) > KEPT:
            self._forms.popitem(last=False)
        return form

    def _build(self, plan: CompressionPlan) -> _Form:
        """Cut, factorise, re-estimate, fold, and see the ranges of each layer.

        BatchNorm is folded after the pass that re-estimates it, which also sees the ranges. Up to
        the first change that pass is known from the uncompressed network.
        """
        work = self.compressor.shape(plan)
        network = work.network
        made, given = _watch_ranges(network, self.pairs)
        changed = {n for n, c in plan.layers.items() if c.method or c.sparsity}
        cut = (g for g in self.space.groups if g.name in work.kept)
        changed.update(member.module for group in cut for member in group.members)
        kind = self.compressor.normalise if changed else "none"
        known = {} if kind == "plain" else self._replay.skip(network, changed)
        with reestimating(network, self._moments, work.lost, kind):
            network(self._inputs)
        for hook in (*given.hooks, *made.hooks):
            hook.remove()
        for name, module in known.items():
            network.set_submodule(name, module)
        fold(network, self.pairs)
        layers = wrap_layers(network)
        form = _Form(network, layers, {}, {})
        for name in layers:
            if name in self._plain and any(is_within(name, part) for part in known):
                given.seen[name], made.seen[name] = self._plain[name]
            if name in given.seen:
                form.given[name] = self._grown(name, "given", given.seen[name])
                form.made[name] = self._grown(name, "made", made.seen[name])
        return form

    def _grown(self, name: str, side: str, seen: Range) -> Range:
        """A range as the exporter's examples would show it."""
        whole = self._growth.get((name.rpartition(".")[0], side), (1.0, 1.0))  # of a factor
        low, high = self._growth.get((name, side), whole)
        return seen[0] * low, seen[1] * high

    def _learn_ranges(self, inputs: Tensor) -> None:
        """How much wider the exporter's examples make each range, on the uncompressed network."""
        with torch.no_grad():
            few = self._build(self.space.identity)
            self._plain = {n: (r, few.made[n]) for n, r in few.given.items()}
            network = self.compressor.shape(self.space.identity).network
            made, given = _watch_ranges(network, self.pairs)
            for start in range(0, len(inputs), 32):
                network(inputs[start : start + 32])
            for hook in (*given.hooks, *made.hooks):
                hook.remove()
        for side, seen, before in (("given", given.seen, few.given), ("made", made.seen, few.made)):
            for name, (low, high) in seen.items():
                was = before[name]
                self._growth[name, side] = (_ratio(low, was[0]), _ratio(high, was[1]))

    def _round(self, form: _Form, plan: CompressionPlan) -> None:
        bits = self.compressor.bits(plan, form.given)
        for name, layer in form.layers.items():
            wanted = bits.get(name, Bits())
            if wanted.weight >= 16 or name not in form.given:
                continue
            if wanted.activation >= 16:
                layer.round(wanted.weight, None, None)
                continue
            bounds, seen = self._output(name, bits)
            made = form.made[name]
            if bounds is not None:
                made = max(made[0], bounds[0]), min(made[1], bounds[1])
            layer.round(wanted.weight, form.given[name], made if seen else None, self._reduce_range)

    def _output(
        self, name: str, bits: Mapping[str, Bits]
    ) -> tuple[tuple[float, float] | None, bool]:
        """Bounds that the layer's own rounding takes over, and whether it must be rounded: not
        where every reader is a layer that rounds the same tensor itself."""
        flow = self._flow.get(name)
        if flow is None:
            flow = self._flow.get(name.rpartition(".")[0])
            if flow is None or _next(name) in bits:
                return None, False  # the next factor rounds it
        readers = _factored(flow, bits)
        alone = readers is not None and all(bits[r].activation < 16 for r in readers)
        return flow.bounds, not alone


def _factored(flow: Reader, bits: Mapping[str, Bits]) -> tuple[str, ...] | None:
    """The readers of a layer's result under the names they have once factorised."""
    if flow.readers is None:
        return None
    names = tuple(r.partition("#")[0] for r in flow.readers)
    names = tuple(n if n in bits else f"{n}.0" for n in names)
    return names if all(n in bits for n in names) else None


@dataclass
class _Ranges:
    seen: dict[str, Range] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list)

    def add(self, name: str, x: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(x))
        before = self.seen.get(name, (low, high))
        self.seen[name] = min(low, before[0]), max(high, before[1])


def _watch_ranges(network: nn.Module, pairs: Mapping[str, str]) -> tuple[_Ranges, _Ranges]:
    """(made, given): smallest and largest output and input of each layer in the passes to come; a
    layer with a BatchNorm to fold makes what the BatchNorm makes."""
    made, given = _Ranges(), _Ranges()
    norm_of = {conv: bn for bn, conv in pairs.items()}
    names = {name for name, _ in network.named_modules()}
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            continue

        def before(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            given.add(name, args[0])

        def after(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
            made.add(name, out)

        given.hooks.append(module.register_forward_pre_hook(before))
        owner = name if name in norm_of else name.rpartition(".")[0]
        source: nn.Module = module
        if owner in norm_of and (owner == name or _next(name) not in names):
            source = network.get_submodule(norm_of[owner])
        made.hooks.append(source.register_forward_hook(after))
    return made, given


def _next(name: str) -> str:
    """The name of the factor after this one: ``conv.1`` after ``conv.0``."""
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{int(leaf) + 1}" if leaf.isdigit() else ""


def _ratio(more: float, fewer: float) -> float:
    return max(1.0, more / fewer) if abs(fewer) > 1e-12 and more * fewer > 0 else 1.0
