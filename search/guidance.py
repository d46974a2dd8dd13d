"""What a guided search knows before its first trial, and how it sees objectives as losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..objectives.hypervolume import RATIO, USEFUL_LOSS, WHOLE_LOSS
from ..objectives.objective import QUANTITIES, Objective, quantity_name
from .cost_table import CostTable
from .knapsack import Floats, Ints

SCORES = ("accuracy", "fidelity", "accuracy_drop", "divergence", "loss")
_SHARES = (WHOLE_LOSS, USEFUL_LOSS)
_NATS = (2.0, 0.1)  # references for divergence and loss, which are not shares
_MOST_DAMAGE = 8.0
_OF = {  # objective -> the quantity of the cost table that it follows, and whether inversely
    "size_ratio": ("size_bytes", False),
    "compression_ratio": ("size_bytes", True),
    "latency_ratio": ("latency_ms", False),
    "throughput": ("latency_ms", True),
    "archive_bytes": ("size_bytes", False),
    "archive_ratio": ("size_bytes", False),
    "peak_memory_bytes": ("params", False),
    "energy_mj": ("macs", False),
}


@dataclass(frozen=True, eq=False)
class Guidance:
    """Damage and cost of every option, around the unchanged network.

    parameters: name -> number of options, 0 changes nothing. damage: for each parameter the
    divergence (nats) of each option alone, [0] = 0, never falling. table: what options cost.
    base: the unchanged network's values, among them its score.
    Raises InputError when damages and parameters do not belong together.
    """

    parameters: Mapping[str, int]
    damage: Mapping[str, Floats]
    table: CostTable
    base: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, count in self.parameters.items():
            if name not in self.damage or len(self.damage[name]) != count:
                raise InputError(
                    "sensitivity", f"{name!r} has {count} options, the table has another number",
                    "it belongs to another network or space: measure it again",
                )  # fmt: skip

    @property
    def counts(self) -> Ints:
        """Options of each parameter."""
        return np.array(list(self.parameters.values()), dtype=np.intp)

    @property
    def families(self) -> list[str]:
        """``keep``, ``bits``, ``rank`` ... of each parameter."""
        return [name.partition(":")[0] for name in self.parameters]

    @property
    def blocks(self) -> Ints:
        """A number for each parameter: those of one residual block or layer share it."""
        names = [name.partition(":")[2].rpartition(".")[0] or name for name in self.parameters]
        known = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return np.array([known[name] for name in names], dtype=np.intp)

    def damages(self) -> Floats:
        """(parameters, most options), finite, never falling; padded with the last."""
        width = max(self.parameters.values(), default=1)
        out = np.zeros((len(self.parameters), width))
        for row, name in zip(out, self.parameters, strict=True):
            values = np.nan_to_num(np.asarray(self.damage[name], float), nan=_MOST_DAMAGE)
            values = np.clip(values, 0.0, _MOST_DAMAGE)
            row[: len(values)] = np.maximum.accumulate(values)
            row[len(values) :] = row[len(values) - 1]
        return out


def on_first_target(objectives: Sequence[Objective]) -> list[Objective]:
    """The objectives as a job with its first target alone would have them: bare names, each once.
    What that target measures is among a trial's values under these names; the others follow."""
    names = dict.fromkeys(quantity_name(o.name) or o.name for o in objectives)
    return [Objective(name, {}) for name in names]


def screenable(objectives: Sequence[Objective], table: CostTable) -> list[Objective]:
    """The same objectives on the first target, each as what a screen can tell of it: the accuracy
    for its drop, the bytes for their ratio, and where the table has no latency, the MACs."""
    out = []
    for objective in on_first_target(objectives):
        name = {"accuracy_drop": "accuracy", "loss": "divergence"}.get(
            objective.name, objective.name
        )
        out.append(Objective(name if name in SCORES else table.names[_column(name, table)], {}))
    return out


def _column(name: str, table: CostTable) -> int:
    """The column of the table that a cost follows. Raises InputError when there is none."""
    source = _OF.get(name, (name, False))[0]
    for known in (source, "latency_ms", "macs", "size_bytes"):
        if known in table.names:
            return table.names.index(known)
    raise InputError("objectives", f"nothing predicts {name!r}", "use another sampler")


class Axes:
    """Objectives as (loss of score, ratio to the baseline ...), less is better everywhere.

    The first axis is the score, whether it is an objective or only constrained; the others are the
    remaining objectives. A quantity that the table does not know follows the nearest one it knows.
    Of several targets the first one's values count (see :func:`on_first_target`).
    """

    def __init__(self, guidance: Guidance, objectives: Sequence[Objective]) -> None:
        self._table, self._base = guidance.table, guidance.base
        named = [o.name for o in on_first_target(objectives)]
        fallback = "fidelity" if "accuracy" not in self._base else "accuracy"
        self.score = next((n for n in named if n in SCORES), fallback)
        share = QUANTITIES[self.score].unit == "share"
        self.lengths = _SHARES if share else _NATS
        self.ratio = RATIO
        self.names = [n for n in named if n not in SCORES]
        self._columns = [_column(name, self._table) for name in self.names]

    @property
    def count(self) -> int:
        return 1 + len(self.names)

    @property
    def base_score(self) -> float:
        """The unchanged network's score, as a share (1 where the score is no share)."""
        name = "accuracy" if self.score == "accuracy_drop" else self.score
        return float(self._base.get(name, 1.0)) if self.lengths is _SHARES else 1.0

    def ratios(self, genotypes: Ints) -> Floats:
        """Predicted ratios: (n, parameters) -> (n, axes without the score)."""
        if not self.names:
            return np.zeros((len(genotypes), 0))
        costs = self._table.costs(genotypes)
        return np.stack([costs[:, c] / self._table.base[c] for c in self._columns], axis=1)

    def shares(self, table: Floats) -> Floats:
        """A factor of the cost table, (..., quantities), as ratios to the base, (..., axes)."""
        columns = self._columns
        return np.asarray(table[..., columns] / self._table.base[columns])

    def loss(self, values: Mapping[str, float]) -> float | None:
        """The true loss of score, or None when it was not obtained."""
        if self.score in ("accuracy", "fidelity"):
            found = values.get(self.score)
            return None if found is None else self._base.get(self.score, 1.0) - found
        found = values.get(self.score)
        start = self._base.get(self.score, 0.0) if self.score == "loss" else 0.0
        return None if found is None else found - start

    def noise(self, errors: Mapping[str, float]) -> float:
        """One standard error of the loss as measured, 0 where it is unknown: that of the
        difference from the unchanged network where both were counted on the same examples."""
        difference = self.score in ("accuracy", "accuracy_drop", "fidelity")
        return float(errors.get("accuracy_drop" if difference else self.score, 0.0))

    def true_ratios(self, values: Mapping[str, float]) -> list[float] | None:
        """The true ratios, or None when one was not obtained."""
        out = []
        for name in self.names:
            found = values.get(name)
            base = self._base_of(name)
            if found is None or not base:
                return None
            out.append(base / max(found, 1e-12) if QUANTITIES[name].maximize else found / base)
        return out

    def values(self, point: Floats) -> dict[str, float]:
        """A point of these axes under the names that constraints use."""
        loss, out = float(point[0]), {self.score: float(point[0])}
        if self.lengths is _SHARES:
            name = "accuracy" if self.score == "accuracy_drop" else self.score
            out = {name: self.base_score - loss, "accuracy_drop": loss}
        for name, ratio in zip(self.names, point[1:], strict=True):
            base = self._base_of(name)
            ratio = float(max(ratio, 1e-9))
            out[name] = base / ratio if QUANTITIES[name].maximize else base * ratio
            source = _OF.get(name, (name, False))[0]
            if name == source or name in ("size_ratio", "latency_ratio", "compression_ratio"):
                out[source] = self._base.get(source, 1.0) * ratio
                if source in ("size_bytes", "latency_ms"):
                    out[source.rpartition("_")[0] + "_ratio"] = ratio
                if source == "size_bytes":
                    out["compression_ratio"] = 1.0 / ratio
        return out

    def _base_of(self, name: str) -> float:
        if name in self._base:
            return float(self._base[name])
        if name.endswith("_ratio"):
            return 1.0
        source, inverse = _OF.get(name, (name, False))
        found = float(self._base.get(source, 1.0))
        return 1.0 / found if inverse and found else found
