"""The per-layer picture of one point as HTML: a row for each layer, a bar for each quantity."""

from __future__ import annotations

from html import escape

from .anatomy import Anatomy, LayerAnatomy
from .wording import legible

_OTHER = "everything else"


def layers_title(name: str, anatomy: Anatomy) -> str:
    """What was done where, and which layers are the dearest now, in one line."""
    layers = anatomy.layers
    total = len(layers)
    parts = []
    for bits in sorted({layer.bits for layer in layers if layer.bits < 32}, reverse=True):
        parts.append(
            f"{sum(layer.bits == bits for layer in layers)} of {total} layers in int{bits}"
        )
    narrow = sum((layer.kept or 0) < (layer.full or 0) for layer in layers)
    if narrow:
        noun = "" if parts else " layer" if narrow == 1 else " layers"
        parts.append(f"{narrow}{noun} with fewer channels")
    factorised = sum(bool(layer.rank) for layer in layers)
    if factorised:
        parts.append(f"{factorised} factorised")
    text = f"{name}: {', '.join(parts) or 'no layer changed'}"
    heavy = max(layers, key=lambda layer: layer.size_bytes or 0, default=None)
    size, ms = anatomy.size_bytes, anatomy.ms
    if heavy is not None and size:
        text += f"; {heavy.name} is the largest ({100 * (heavy.size_bytes or 0) / size:.0f} %)"
    slow = max(layers, key=lambda layer: layer.ms or 0.0, default=None)
    if slow is not None and ms:
        text += f", {slow.name} the slowest ({100 * (slow.ms or 0.0) / ms:.0f} % of the time)"
    return text


def layers_table(anatomy: Anatomy) -> str:
    """The table; the grey bar behind each is the original network's."""
    layers = anatomy.layers
    sized, timed = anatomy.size_bytes is not None, anatomy.ms is not None
    head = "<th>layer</th><th>output channels</th><th>weights</th><th>low rank</th>"
    head += "<th>bytes, share of the file</th>" * sized + "<th>time, share</th>" * timed
    most_bytes = max((max(x.size_bytes or 0, x.full_bytes or 0) for x in layers), default=0)
    most_ms = max([*(max(x.ms or 0.0, x.full_ms or 0.0) for x in layers), anatomy.rest_ms or 0.0])
    rows = [_row(layer, anatomy, most_bytes, most_ms) for layer in layers]
    if sized or timed:
        cells = f"<td>{_OTHER}</td><td colspan=3>graph, additions, conversions of numbers</td>"
        if sized:
            cells += _cost(anatomy.rest_bytes, None, most_bytes, anatomy.size_bytes, "size_bytes")
        if timed:
            cells += _cost(anatomy.rest_ms, None, most_ms, anatomy.ms, "latency_ms")
        rows.append(f'<tr class="rest">{cells}</tr>')
    note = "Grey: the original network."
    if timed:
        note += (
            f" Time: {escape(anatomy.timed)}, the profiler's own cost taken off. Good for comparing"
            " layers; the latency above is measured without it."
        )
    elif not sized:
        note = "Bytes and time of layers are known where the exported file is an ONNX file."
    else:
        note += " Time by layer was not measured: it needs the machine of the search."
    return (
        f'<div class=scroll><table class="layers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><p class=note>{note}</p>"
    )


def _row(layer: LayerAnatomy, anatomy: Anatomy, most_bytes: int, most_ms: float) -> str:
    cells = f"<td class=layer>{escape(layer.name)}</td>"
    if layer.kept is None or not layer.full:
        cells += "<td></td>"
    else:
        text = f"{layer.kept} of {layer.full}" if layer.kept < layer.full else f"{layer.full}"
        cells += f"<td class=gauge>{_bar('kept', layer.kept / layer.full, 1.0)}{text}</td>"
    zeros = f" · {layer.zeros} % zeros" if layer.zeros else ""
    kind = "fp32" if layer.bits == 32 else "16-bit" if layer.bits == 16 else f"int{layer.bits}"
    wider = f" (inputs {layer.activation_bits})" if layer.activation_bits > layer.bits else ""
    cells += f"<td><span class='bits b{layer.bits}'>{kind}</span>{zeros}{wider}</td>"
    cells += f"<td>{escape(layer.rank)}</td>"
    if anatomy.size_bytes is not None:
        cells += _cost(
            layer.size_bytes, layer.full_bytes, most_bytes, anatomy.size_bytes, "size_bytes"
        )
    if anatomy.ms is not None:
        cells += _cost(layer.ms, layer.full_ms, most_ms, anatomy.ms, "latency_ms")
    return f"<tr{'' if layer.changed else ' class=same'}>{cells}</tr>"


def _cost(
    value: float | None, before: float | None, most: float, total: float | None, name: str
) -> str:
    """A gauge on the scale of the dearest layer, the value and its share of the whole point."""
    kind = "bytes" if name == "size_bytes" else "time"
    scale = most or 1.0
    bar = _bar(kind, (value or 0.0) / scale, None if before is None else before / scale)
    text = f"{1000 * (value or 0.0):.0f} µs" if kind == "time" else legible(name, value)
    share = 100 * (value or 0.0) / total if total else 0.0
    part = "&lt;1" if 0 < share < 0.5 else f"{share:.0f}"
    return f"<td class=gauge>{bar}{text} <small>{part} %</small></td>"


def _bar(kind: str, now: float, before: float | None) -> str:
    ghost = "" if before is None else f'<u style="width:{100 * min(before, 1.0):.1f}%"></u>'
    return f'<em>{ghost}<i class="{kind}" style="width:{100 * min(now, 1.0):.1f}%"></i></em>'
