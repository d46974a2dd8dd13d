"""One way to compress one network: the plan that crosses processes and is shown to people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError

VERSION = 1
METHODS = ("svd", "tucker2")


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What is done to one layer; the default leaves it as it is.

    weight_bits, activation_bits: stored bits per weight, bits per input activation (32 = float32).
    method, ranks: ``None`` and ``()``, or ``"svd"`` with ``(r,)`` (linear and 1x1 convolutions), or
        ``"tucker2"`` with ``(r_out, r_in)`` (k x k convolutions).
    """

    weight_bits: int = 32
    activation_bits: int = 32
    method: str | None = None
    ranks: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The choice as plain JSON, without the keys that change nothing."""
        out: dict[str, Any] = {"weight_bits": self.weight_bits}
        out["activation_bits"] = self.activation_bits
        if self.method is not None:
            out |= {"method": self.method, "ranks": list(self.ranks)}
        return out

    def __str__(self) -> str:
        bits = f"w{self.weight_bits}a{self.activation_bits}"
        if self.method is None:
            return bits
        return f"{bits} {self.method} " + "x".join(str(r) for r in self.ranks)


@dataclass(frozen=True)
class CompressionPlan:
    """Every choice for one candidate: explicit integers under the original network's module names.

    groups: kept channels of each channel group, e.g. ``{"layer1.0.conv1": 12}``.
    layers: the :class:`LayerChoice` of each layer.

    Two plans are the same if their ``fingerprint`` is. A plan from :meth:`SearchSpace.plan` is
    canonical (ranks clamped to the surviving channels, useless ranks dropped).
    """

    groups: Mapping[str, int]
    layers: Mapping[str, LayerChoice]
    version: int = field(default=VERSION)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON; :meth:`from_json` reads it back equal."""
        return {
            "version": self.version,
            "groups": dict(self.groups),
            "layers": {name: choice.to_json() for name, choice in self.layers.items()},
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "plan") -> CompressionPlan:
        """Read a plan, checking every type and value.

        Raises InputError (``where`` names the source) on an unknown version, an unknown key or a
        value that is not a positive integer.
        """
        if not isinstance(data, Mapping):
            raise InputError(where, f"expected a mapping, got {type(data).__name__}", "")
        if data.get("version") != VERSION:
            raise InputError(
                where,
                f"plan version {data.get('version')!r} is not {VERSION}",
                "use the paretune version that wrote it",
            )
        extra = set(data) - {"version", "groups", "layers"}
        if extra:
            raise InputError(where, f"unknown key {sorted(extra)[0]!r}", "remove it")
        groups, layers = data.get("groups"), data.get("layers")
        if not isinstance(groups, Mapping) or not isinstance(layers, Mapping):
            raise InputError(where, "'groups' and 'layers' must be mappings", "")
        return cls(
            groups={str(k): _positive(v, f"{where}.groups.{k}") for k, v in groups.items()},
            layers={str(k): _choice(v, f"{where}.layers.{k}") for k, v in layers.items()},
        )

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two plans share exactly if they say the same."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        width = max((len(n) for n in (*self.groups, *self.layers)), default=0)
        lines = [f"group {n:<{width}}  keep {k}" for n, k in self.groups.items()]
        lines += [f"layer {n:<{width}}  {c}" for n, c in self.layers.items()]
        return "\n".join(lines)

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _positive(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(where, f"expected a positive integer, got {value!r}", "")
    return value


def _choice(value: Any, where: str) -> LayerChoice:
    if not isinstance(value, Mapping):
        raise InputError(where, f"expected a mapping, got {value!r}", "")
    extra = set(value) - {"weight_bits", "activation_bits", "method", "ranks"}
    if extra:
        raise InputError(where, f"unknown key {sorted(extra)[0]!r}", "remove it")
    method, ranks = value.get("method"), value.get("ranks", [])
    if method is not None and method not in METHODS:
        raise InputError(where, f"unknown method {method!r}", "known: " + ", ".join(METHODS))
    if not isinstance(ranks, list | tuple):
        raise InputError(where, f"ranks must be a list, got {ranks!r}", "")
    expected = {None: 0, "svd": 1, "tucker2": 2}[method]
    if len(ranks) != expected:
        raise InputError(where, f"method {method!r} takes {expected} ranks, got {ranks!r}", "")
    return LayerChoice(
        weight_bits=_positive(value.get("weight_bits", 32), f"{where}.weight_bits"),
        activation_bits=_positive(value.get("activation_bits", 32), f"{where}.activation_bits"),
        method=method,
        ranks=tuple(_positive(r, f"{where}.ranks") for r in ranks),
    )
