"""Numbers and plans in a person's words: ``303 kB``, ``0.41×``, ``keep 0.78 · int8 19/20``."""

from __future__ import annotations

import math
from collections import Counter

from ..spaces.plan import CompressionPlan
from .condition import unit_of
from .objective import quantity_name

LABELS = {
    "accuracy": "Accuracy",
    "accuracy_drop": "Accuracy lost",
    "fidelity": "Agreement with the original",
    "divergence": "Divergence from the original",
    "loss": "Loss",
    "size_bytes": "File size",
    "size_ratio": "Size",
    "compression_ratio": "Compression",
    "archive_bytes": "Packed size",
    "archive_ratio": "Packed size",
    "latency_ms": "Latency",
    "latency_ratio": "Latency",
    "macs": "MACs",
    "params": "Parameters",
    "peak_memory_bytes": "Peak memory",
    "throughput": "Throughput",
    "energy_mj": "Energy",
}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def label(name: str) -> str:
    """``latency_ms`` -> ``Latency``; a target's suffix is kept in brackets."""
    owner = quantity_name(name)
    if owner is None:
        return name
    suffix = name[len(owner) + 1 :]
    return LABELS.get(owner, owner) + (f" ({suffix})" if suffix else "")


def legible(name: str, value: float | None) -> str:
    """A value with its unit, rounded to what a person reads; ``–`` where there is none.

    >>> legible("size_bytes", 303_000), legible("accuracy", 0.91481), legible("latency_ratio", 0.41)
    ('303 kB', '91.48 %', '0.410×')
    """
    if value is None or not math.isfinite(value):
        return "–"
    unit = unit_of(name)
    if quantity_name(name) == "accuracy_drop":
        return f"{100 * value:.2f} points"
    if unit == "share":
        return f"{100 * value:.2f} %"
    if unit == "x":
        return f"{value:.3g}×" if value >= 10 else f"{value:.3f}×"
    if unit == "bytes":
        return _prefixed(value, "B")
    if unit == "ms":
        return f"{value:#.3g} ms".replace(". ", " ")
    if quantity_name(name) in ("macs", "params"):
        return _prefixed(value, "").strip()
    return f"{value:.4g}"


def points(drop: float) -> str:
    """A loss of accuracy as a signed change: ``−0.52`` points, ``+0.10`` for a gain."""
    change = round(-100 * drop, 2)
    return f"{'+' if change > 0 else '−' if change < 0 else '±'}{abs(change):.2f}"


def _prefixed(value: float, unit: str) -> str:
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            scaled = value / size
            digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def summary(plan: CompressionPlan, original: CompressionPlan | None = None) -> str:
    """One line that says what a plan does: ``keep 0.78 · int8 19/20 · rank 2 layers``.

    original: the identity plan, whose groups are the full channel counts. ``keep`` is the mean
    over the channel groups of the share kept (without ``original``: the channels kept in all).
    ``int8 19/20``: 19 of 20 layers store 8-bit weights. ``16-bit``: layers in half precision.
    ``rank``: layers factorised. ``zeros``: layers some of whose weights are set to zero.
    """
    parts: list[str] = []
    if original is not None:
        full = {name: count for name, count in original.groups.items() if name in plan.groups}
        kept = [plan.groups[name] / count for name, count in full.items()]
        if kept and min(kept) < 1:
            parts.append(f"keep {sum(kept) / len(kept):.2f}")
    elif plan.groups:
        parts.append(f"keep {sum(plan.groups.values())} channels")
    total = len(plan.layers)
    widths = Counter(choice.weight_bits for choice in plan.layers.values())
    for bits in sorted((b for b in widths if b < 32), reverse=True):
        parts.append(f"{'16-bit' if bits == 16 else f'int{bits}'} {widths[bits]}/{total}")
    factorised = sum(choice.method is not None for choice in plan.layers.values())
    if factorised:
        parts.append(f"rank {factorised} layer{'s' if factorised > 1 else ''}")
    sparse = sum(choice.sparsity > 0 for choice in plan.layers.values())
    if sparse:
        parts.append(f"zeros {sparse} layer{'s' if sparse > 1 else ''}")
    return " · ".join(parts) or "unchanged"
