"""An emulated network for tests of the search: exact costs, damages that add up but for known
interactions, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from paretune.objectives.evaluation import Evaluation
from paretune.objectives.objective import Objective
from paretune.spaces.plan import CompressionPlan, LayerChoice

OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {}), Objective("macs", {})]
KEEPS = (1.0, 0.75, 0.5, 0.25)
BITS = (32, 8, 4)
RANKS = (None, 0.75, 0.5, 0.25)
ACCURACY = 0.92


@dataclass(frozen=True)
class Tie:
    """A layer: the groups whose channels it makes and reads."""

    name: str
    width: int
    parts_out: Mapping[str, int]
    parts_in: Mapping[str, int]


@dataclass(frozen=True)
class Network:
    """``blocks`` residual blocks of two layers; the inner group of each can be cut, and so can the
    stage that ties the outer channels of three blocks."""

    blocks: int = 9
    seed: int = 0
    interaction: float = 0.3
    layers: tuple[Tie, ...] = field(init=False)

    def __post_init__(self):
        made = []
        for b in range(self.blocks):
            width, stage = 16 * 2 ** (3 * b // self.blocks), f"s{3 * b // self.blocks}"
            made.append(Tie(f"b{b}.conv1", width, {f"b{b}.conv1": 1}, {stage: 1}))
            made.append(Tie(f"b{b}.conv2", width, {stage: 1}, {f"b{b}.conv1": 1}))
        object.__setattr__(self, "layers", tuple(made))

    @cached_property
    def groups(self):
        return list(dict.fromkeys(g for t in self.layers for g in (*t.parts_out, *t.parts_in)))

    @cached_property
    def parameters(self):
        out = {f"keep:{g}": len(KEEPS) for g in self.groups}
        for layer in self.layers:
            out[f"rank:{layer.name}"] = len(RANKS)
            out[f"bits:{layer.name}"] = len(BITS)
        return out

    @property
    def size(self):
        return prod(self.parameters.values())

    @property
    def identity(self):
        return self.plan({})

    def presets(self):
        return [
            {p: min(level, n - 1) for p, n in self.parameters.items() if p.startswith(families)}
            for families in ("keep", "rank", "bits", ("keep", "bits"), ("rank", "bits"))
            for level in (1, 2, 3)
        ]

    def plan(self, genotype):
        get = genotype.get
        groups = {g: round(1000 * KEEPS[get(f"keep:{g}", 0)]) for g in self.groups}
        layers = {}
        for t in self.layers:
            share = RANKS[get(f"rank:{t.name}", 0)]
            layers[t.name] = LayerChoice(
                BITS[get(f"bits:{t.name}", 0)],
                method=None if share is None else "svd",
                ranks=() if share is None else (round(1000 * share),),
            )
        return CompressionPlan(groups, layers)

    def costs(self, plan):
        size = macs = 0.0
        for t in self.layers:
            (out,), (into,) = t.parts_out, t.parts_in
            choice = plan.layers[t.name]
            weights = 9 * t.width**2 * plan.groups[out] * plan.groups[into] / 1e6
            weights *= (choice.ranks[0] / 1000 + 0.05) if choice.ranks else 1.0
            size += weights * choice.weight_bits / 8 + 40 + 0.004 * t.width * plan.groups[out]
            macs += weights * (64 / t.width) ** 2 * 16
        return {"size_bytes": size, "macs": macs}

    @cached_property
    def truth(self):
        """Damage of each single option, and which pairs of parameters make each other worse."""
        rng = np.random.default_rng(self.seed)
        single = {}
        for name, count in self.parameters.items():
            scale = {"keep": 0.08, "rank": 0.03, "bits": 0.004}[name.partition(":")[0]]
            steps = rng.lognormal(0.0, 0.7, count - 1) * scale * 3.0 ** np.arange(count - 1)
            single[name] = np.concatenate([[0.0], np.cumsum(steps)])
        names = list(self.parameters)
        pairs = rng.integers(len(names), size=(60, 2))
        return single, [(names[a], names[b], float(rng.normal(0.6, 1.0))) for a, b in pairs]

    def damage(self):
        return {name: values.copy() for name, values in self.truth[0].items()}

    def divergence(self, genotype):
        single, pairs = self.truth
        get = {n: single[n][genotype.get(n, 0)] for n in single}
        total = sum(get.values())
        total += self.interaction * sum(k * np.sqrt(get[a] * get[b]) for a, b, k in pairs if a != b)
        return max(float(total), 0.0)

    def values(self, genotype, noise=0.003):
        divergence = self.divergence(genotype)
        rng = np.random.default_rng([1 + k for k in genotype.values()])
        accuracy = 0.1 + (ACCURACY - 0.1) * np.exp(-0.5 * divergence - 0.3 * divergence**2)
        accuracy += float(rng.normal(0, noise)) * (divergence > 0)
        costs = self.costs(self.plan(genotype))
        return {"accuracy": float(accuracy), "divergence": divergence, **costs}

    def evaluate(self, ask):
        return Evaluation(ask.plan, "measure", self.values(ask.params))
