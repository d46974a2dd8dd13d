"""One way to compress one network: the plan that crosses processes and is shown to people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import InputError

VERSION = 1
METHODS = {"svd": 1, "spatial_svd": 1, "tucker2": 2, "cp": 1, "depthwise": 1}
"""How a layer may be factorised, and how many ranks each method takes."""
WEIGHT_BITS = (32, 16, 8, 6, 4, 3, 2)
ACTIVATION_BITS = (32, 16, 8)
QUANTIZERS = ("uniform", "codebook", "apot")
PATTERNS = ("unstructured", "2:4")


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What is done to one layer; the default leaves it as it is.

    weight_bits, activation_bits: stored bits per weight, bits per input activation (32 = float32).
    quantizer: the values that weights of fewer than 16 bits may take: ``"uniform"`` steps, a
        ``"codebook"`` of 2**bits means, or ``"apot"``, sums of powers of two.
    method, ranks: ``None`` and ``()``, or one of METHODS: ``"svd"`` with ``(r,)`` (linear and 1x1
        convolutions); for k x k convolutions ``"spatial_svd"`` ``(r,)``, ``"tucker2"``
        ``(r_out, r_in)``, ``"cp"`` ``(r,)`` and ``"depthwise"`` ``(r,)`` (r depthwise kernels a
        channel, then pointwise).
    sparsity, pattern: per cent of the weights that are zero, 0 to 99, chosen freely or, with
        ``"2:4"``, two of each four neighbours (then 50).
    """

    weight_bits: int = 32
    activation_bits: int = 32
    method: str | None = None
    ranks: tuple[int, ...] = ()
    quantizer: str = "uniform"
    sparsity: int = 0
    pattern: str = "unstructured"

    def to_json(self) -> dict[str, Any]:
        """The choice as plain JSON, without the keys that change nothing."""
        out: dict[str, Any] = {"weight_bits": self.weight_bits}
        out["activation_bits"] = self.activation_bits
        if self.method is not None:
            out |= {"method": self.method, "ranks": list(self.ranks)}
        if self.quantizer != "uniform":
            out["quantizer"] = self.quantizer
        if self.sparsity:
            out |= {"sparsity": self.sparsity, "pattern": self.pattern}
        return out

    def __str__(self) -> str:
        words = [f"w{self.weight_bits}a{self.activation_bits}"]
        if self.quantizer != "uniform":
            words.append(self.quantizer)
        if self.method is not None:
            words.append(f"{self.method} " + "x".join(str(r) for r in self.ranks))
        if self.sparsity:
            words.append(f"{self.sparsity}% zeros" + (" 2:4" if self.pattern == "2:4" else ""))
        return " ".join(words)


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

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that two plans share exactly if they say the same."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def needs_archive(self) -> bool:
        """Whether some layer is stored at its real size in a packed container only."""
        return any(
            c.sparsity or c.quantizer != "uniform" or c.weight_bits in (3, 6)
            for c in self.layers.values()
        )

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


_KEYS = {"weight_bits", "activation_bits", "method", "ranks", "quantizer", "sparsity", "pattern"}


def _choice(value: Any, where: str) -> LayerChoice:
    if not isinstance(value, Mapping):
        raise InputError(where, f"expected a mapping, got {value!r}", "")
    extra = set(value) - _KEYS
    if extra:
        raise InputError(where, f"unknown key {sorted(extra)[0]!r}", "remove it")
    method, ranks = value.get("method"), value.get("ranks", [])
    if method is not None:
        _one_of(method, tuple(METHODS), f"{where}.method")
    if not isinstance(ranks, list | tuple):
        raise InputError(where, f"ranks must be a list, got {ranks!r}", "")
    expected = 0 if method is None else METHODS[method]
    if len(ranks) != expected:
        raise InputError(where, f"method {method!r} takes {expected} ranks, got {ranks!r}", "")
    sparsity = value.get("sparsity", 0)
    if sparsity != 0:
        sparsity = _positive(sparsity, f"{where}.sparsity")
    if not 0 <= sparsity <= 99:
        raise InputError(
            f"{where}.sparsity", f"{sparsity!r} per cent zeros", "give a whole number below 100"
        )
    pattern = _one_of(value.get("pattern", "unstructured"), PATTERNS, f"{where}.pattern")
    if pattern == "2:4" and sparsity != 50:
        raise InputError(f"{where}.sparsity", f"2:4 leaves 50 % zeros, not {sparsity!r}", "say 50")
    return LayerChoice(
        weight_bits=_one_of(value.get("weight_bits", 32), WEIGHT_BITS, f"{where}.weight_bits"),
        activation_bits=_one_of(
            value.get("activation_bits", 32), ACTIVATION_BITS, f"{where}.activation_bits"
        ),
        method=method,
        ranks=tuple(_positive(r, f"{where}.ranks") for r in ranks),
        quantizer=_one_of(value.get("quantizer", "uniform"), QUANTIZERS, f"{where}.quantizer"),
        sparsity=sparsity,
        pattern=pattern,
    )


def _one_of(value: Any, known: tuple[Any, ...], where: str) -> Any:
    if type(value) is not type(known[0]) or value not in known:
        raise InputError(where, f"unknown {value!r}", "known: " + ", ".join(map(str, known)))
    return value
