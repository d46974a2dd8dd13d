"""What a plan did to each layer of the network: channels, bits, rank, bytes of the file, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..spaces.plan import CompressionPlan, LayerChoice
from ..targets.onnx_layers import FileLayer

VERSION = 1


@dataclass(frozen=True)
class LayerAnatomy:
    """One layer, now and in the original network.

    kept, full: output channels. bits, activation_bits: stored per weight, and of its input.
    rank: ``tucker2 16×16``, "" where the layer is whole. zeros: per cent of the weights.
    size_bytes: in the exported file, and full_bytes in the baseline's. ms: of its kernels for one
    batch, and full_ms in the baseline. What is not known is None.
    """

    name: str
    kept: int | None = None
    full: int | None = None
    bits: int = 32
    activation_bits: int = 32
    rank: str = ""
    zeros: int = 0
    size_bytes: int | None = None
    full_bytes: int | None = None
    ms: float | None = None
    full_ms: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the plan did anything to it."""
        narrow = self.kept is not None and self.full is not None and self.kept < self.full
        return narrow or bool(self.rank or self.zeros) or self.bits < 32


@dataclass(frozen=True)
class Anatomy:
    """All layers of one point in the order in which they run, and what is not of any layer.

    rest_bytes: the graph and the conversions between number formats; rest_ms: their kernels.
    timed: what the times are, in words; "" where there are none.
    """

    layers: tuple[LayerAnatomy, ...]
    rest_bytes: int | None = None
    rest_ms: float | None = None
    timed: str = ""

    @property
    def size_bytes(self) -> int | None:
        """Of the whole file."""
        known = [layer.size_bytes for layer in self.layers]
        if self.rest_bytes is None or None in known:
            return None
        return self.rest_bytes + sum(size for size in known if size is not None)

    @property
    def ms(self) -> float | None:
        """Of all kernels."""
        if self.rest_ms is None:
            return None
        return self.rest_ms + sum(layer.ms or 0.0 for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it back equal."""
        return {**asdict(self), "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Anatomy:
        """Read it back; KeyError or TypeError where it is none."""
        layers = tuple(LayerAnatomy(**layer) for layer in data["layers"])
        return cls(layers, data["rest_bytes"], data["rest_ms"], data["timed"])


@dataclass(frozen=True)
class FileAnatomy:
    """What was read from one exported file. times: layer -> ms, None where nothing was timed."""

    layers: Sequence[FileLayer]
    size_bytes: int
    times: Mapping[str, float] | None = None
    rest_ms: float | None = None


def anatomy(
    plan: CompressionPlan,
    identity: CompressionPlan,
    file: FileAnatomy | None = None,
    baseline: FileAnatomy | None = None,
    timed: str = "",
) -> Anatomy:
    """The layers of a plan, from its exported file and the baseline's where they are known.

    identity: the plan that changes nothing. Without files: only what the plan itself says, the
    channels of a group being shown at the layer that names it.
    """
    if file is None or baseline is None:
        names = list(dict.fromkeys([*identity.groups, *identity.layers]))
        return Anatomy(tuple(_planned(name, plan, identity) for name in names))
    now = {layer.name: layer for layer in file.layers}
    layers = []
    for before in baseline.layers:
        after = now.get(before.name)
        base = _planned(before.name, plan, identity)
        stored = after.bits if after else 32
        layers.append(
            LayerAnatomy(
                name=before.name,
                kept=after.shapes[-1][0] if after and after.shapes else base.kept,
                full=before.shapes[0][0] if before.shapes else base.full,
                bits=min(stored, base.bits),
                activation_bits=base.activation_bits if before.name in plan.layers else stored,
                rank=base.rank,
                zeros=base.zeros,
                size_bytes=after.size_bytes if after else 0,
                full_bytes=before.size_bytes,
                ms=None if file.times is None else file.times.get(before.name, 0.0),
                full_ms=None if baseline.times is None else baseline.times.get(before.name, 0.0),
            )
        )
    held = sum(layer.size_bytes or 0 for layer in layers)
    return Anatomy(tuple(layers), file.size_bytes - held, file.rest_ms, timed)


def _planned(name: str, plan: CompressionPlan, identity: CompressionPlan) -> LayerAnatomy:
    choice = plan.layers.get(name, LayerChoice())
    rank = f"{choice.method} {'×'.join(map(str, choice.ranks))}" if choice.method else ""
    return LayerAnatomy(
        name=name,
        kept=plan.groups.get(name),
        full=identity.groups.get(name),
        bits=choice.weight_bits,
        activation_bits=choice.activation_bits,
        rank=rank,
        zeros=choice.sparsity,
    )
