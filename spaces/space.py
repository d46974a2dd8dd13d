"""The search space: every option of every group and layer, and the plans they make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from ..errors import CandidateError, InputError, nearest
from .factors import check_factors
from .layer import Layer
from .plan import CompressionPlan, LayerChoice
from .trace import ChannelGroup

RANK_STEP = 4
"""Ranks are multiples of this where a layer has enough of them."""


@dataclass(frozen=True)
class SearchSpace:
    """What may change in one network on one target.

    groups: channel groups that may be cut; keeps: their options, the full count first.
    layers: in the network's order. frozen: what is left alone, with the reason.
    """

    groups: tuple[ChannelGroup, ...]
    keeps: Mapping[str, tuple[int, ...]]
    layers: tuple[Layer, ...]
    frozen: Mapping[str, str]
    rank_step: int = RANK_STEP

    @cached_property
    def full(self) -> dict[str, int]:
        """Original channel count of each group."""
        return {g.name: g.channels for g in self.groups}

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameter name -> number of options; option 0 changes nothing, higher compresses more."""
        out = {f"keep:{g.name}": len(self.keeps[g.name]) for g in self.groups}
        for layer in self.layers:
            out[f"rank:{layer.name}"] = 1 + len(layer.rank_options)
            if len(layer.bits) > 1:
                out[f"bits:{layer.name}"] = len(layer.bits)
            if layer.zeros:
                out[f"zeros:{layer.name}"] = 1 + len(layer.zeros)
        return {name: count for name, count in out.items() if count > 1}

    @property
    def size(self) -> int:
        """How many genotypes there are."""
        return prod(self.parameters.values())

    @cached_property
    def identity(self) -> CompressionPlan:
        """The plan that changes nothing: the baseline."""
        return self.plan({})

    def plan(self, genotype: Mapping[str, int]) -> CompressionPlan:
        """The canonical plan of a genotype (option index per parameter; absent = 0).

        Raises InputError on an unknown parameter or an option out of range.
        """
        for name, option in genotype.items():
            if name not in self.parameters:
                raise InputError("genotype", f"unknown {name!r}", nearest(name, self.parameters))
            if not 0 <= option < self.parameters[name]:
                raise InputError("genotype", f"{name!r} has no option {option!r}")
        groups = {
            g.name: self.keeps[g.name][genotype.get(f"keep:{g.name}", 0)] for g in self.groups
        }
        layers = {}
        for layer in self.layers:
            weight, activation = layer.bits[genotype.get(f"bits:{layer.name}", 0)]
            option = genotype.get(f"rank:{layer.name}", 0)
            method: str | None = None
            ranks: tuple[int, ...] = ()
            if option:
                chosen = layer.rank_options[option - 1]
                shape = layer.shape(*layer.surviving(groups, self.full))
                method, ranks = chosen.method, chosen.ranks(shape, self.rank_step)
            choice = LayerChoice(weight, activation, method, ranks)
            if zeros := genotype.get(f"zeros:{layer.name}", 0):
                sparsity, pattern = layer.zeros[zeros - 1]
                choice = replace(choice, sparsity=sparsity, pattern=pattern)
            layers[layer.name] = choice
        return self.canonical(CompressionPlan(groups, layers))

    def canonical(self, plan: CompressionPlan) -> CompressionPlan:
        """The same plan with ranks clamped to the surviving channels and useless ranks dropped."""
        layers = {}
        for layer in self.layers:
            choice = plan.layers[layer.name]
            if choice.method is not None:
                out, into = layer.surviving(plan.groups, self.full)
                most = layer.most_ranks(choice.method, out, into)
                ranks = tuple(min(r, m) for r, m in zip(choice.ranks, most, strict=True))
                if layer.saves(choice.method, ranks, out, into):
                    choice = replace(choice, ranks=ranks)
                else:
                    choice = replace(choice, method=None, ranks=())
            layers[layer.name] = choice
        return CompressionPlan({g.name: plan.groups[g.name] for g in self.groups}, layers)

    def check(self, plan: CompressionPlan, where: str = "plan") -> CompressionPlan:
        """``plan`` in canonical form, if it fits this space.

        Raises InputError naming the group or layer that does not exist, is missing or cannot take
        what the plan asks.
        """
        names = {layer.name for layer in self.layers}
        for kind, given, known in (
            ("group", plan.groups, set(self.full)),
            ("layer", plan.layers, names),
        ):
            for name in given:
                if name not in known:
                    raise InputError(where, f"unknown {kind} {name!r}", nearest(name, known))
            for name in known:
                if name not in given:
                    raise InputError(where, f"{kind} {name!r} is missing", "name every one")
        for group in self.groups:
            kept = plan.groups[group.name]
            if kept > group.channels or kept % group.blocks:
                raise InputError(
                    where,
                    f"group {group.name!r} cannot keep {kept} of {group.channels} channels",
                    f"use a multiple of {group.blocks} up to {group.channels}",
                )
        for layer in self.layers:
            choice = plan.layers[layer.name]
            if choice.method is not None:
                shape = layer.shape(layer.out_channels, layer.in_channels)
                spot = f"{where}: layer {layer.name!r}"
                check_factors(choice.method, choice.ranks, layer.methods, shape, spot)
        return self.canonical(plan)

    def only(self, plan: CompressionPlan) -> SearchSpace:
        """The part of this space that ``plan`` names; the rest is left alone."""
        return replace(
            self,
            groups=tuple(g for g in self.groups if g.name in plan.groups),
            keeps={n: k for n, k in self.keeps.items() if n in plan.groups},
            layers=tuple(x for x in self.layers if x.name in plan.layers),
        )

    def presets(self) -> list[dict[str, int]]:
        """Hand-made genotypes: what a person would try, what one would try first in front.

        First, mild to strong, the lowest bits everywhere, alone and with the same share of channels
        or rank everywhere. Then, mild to strong: these without the bits; with them, channels or
        ranks changed only in the heavy layers (those that together hold half of the weights); and
        the lowest rank in one heavy layer alone.
        """
        heavy, whole, parts = self._heavy(), [], []
        for level in range(4):
            for family in ("keep", "rank"):
                whole.append(self._uniform({"bits": 1, family: level}))
                parts.append(self._uniform({family: level}))
                parts.append(self._uniform({"bits": 1, family: level}, heavy))
        parts += [self._uniform({"bits": 1, "rank": 99}, {name}) for name in sorted(heavy)]
        unique = {self.identity.fingerprint: dict[str, int]()}
        for tried in (whole, parts):
            for genotype in sorted(tried, key=lambda g: sum(g.values())):
                unique.setdefault(self.plan(genotype).fingerprint, genotype)
        return [genotype for genotype in unique.values() if genotype]

    def _uniform(self, levels: Mapping[str, int], only: set[str] | None = None) -> dict[str, int]:
        """Every parameter at its family's level; channels and ranks only of layers in ``only``."""
        genotype = {}
        for parameter, count in self.parameters.items():
            family, _, name = parameter.partition(":")
            spared = only is not None and family != "bits" and name not in only
            level = levels.get(family, 0)
            if family == "rank" and count > 4:  # several methods: levels 0 to 3 span them all
                level = -(-level * (count - 1) // 3)
            genotype[parameter] = 0 if spared else min(level, count - 1)
        return genotype

    def _heavy(self) -> set[str]:
        """The fewest layers that hold half of the weights; of equal ones the later."""
        weights = {
            x.name: x.out_channels * x.in_channels * x.kernel // x.conv_groups for x in self.layers
        }
        held, names = 0, set()
        for name in sorted(reversed(weights), key=lambda n: -weights[n]):
            if 2 * held >= sum(weights.values()):
                break
            held += weights[name]
            names.add(name)
        return names

    def rows(self) -> list[dict[str, Any]]:
        """One row per group and per layer, for people (``paretune discover``)."""
        out: list[dict[str, Any]] = []
        for group in self.groups:
            readers = ", ".join(group.consumers())
            out.append(
                {
                    "kind": "group",
                    "name": group.name,
                    "size": str(group.channels),
                    "options": "keep "
                    + " ".join(str(k) for k in self.keeps[group.name])
                    + (" heads" if group.unit == "heads" else ""),
                    "tied": ", ".join(p for p in group.producers() if p != group.name),
                    "read_by": readers,
                }
            )
        for layer in self.layers:
            options = ["bits " + " ".join(f"w{w}a{a}" for w, a in layer.bits)]
            if layer.rank_options:
                options.append(", ".join(option.label for option in layer.rank_options))
            if layer.zeros:
                named = (p if p == "2:4" else f"{s}%" for s, p in layer.zeros)
                options.append(f"zeros {' '.join(named)} (size only)")
            out.append(
                {
                    "kind": layer.kind,
                    "name": layer.name,
                    "size": f"{layer.in_channels}->{layer.out_channels} k{layer.kernel}",
                    "options": "; ".join(options),
                    "tied": "",
                    "read_by": "",
                }
            )
        return out

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over every option."""
        data = [
            [[g.name, self.keeps[g.name]] for g in self.groups],
            [
                [x.name, x.bits, [[o.method, o.shares] for o in x.rank_options], *x.zeros]
                for x in self.layers
            ],
        ]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def require(plan: CompressionPlan, space: SearchSpace) -> CompressionPlan:
    """``space.check`` for a worker: what cannot be carried out is a CandidateError."""
    try:
        return space.check(plan)
    except InputError as error:
        raise CandidateError(str(error)) from error
