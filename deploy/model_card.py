"""The model card of a bundle, for people: what was compressed how, and measured on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..objectives.objective import QUANTITIES
from ..objectives.wording import legible
from ..spaces.plan import CompressionPlan
from .bundle import VERIFIER, WEIGHTS

_SHOWN = ("accuracy", "fidelity", "size_bytes", "latency_ratio")


def model_card(manifest: Mapping[str, Any], trained: bool = False) -> str:
    """The model card as Markdown; what only the owner knows is left to fill in.

    manifest: from :func:`.manifest.make_manifest`. trained: the bundle holds torch weights too.
    """
    model = manifest["model"]
    blocks = [
        [f"# {manifest['study']['name']}, trial {manifest['study']['trial']}"],
        [
            f"Compressed by paretune {manifest['paretune']} on {manifest['made'][:10]}: "
            f"{manifest['summary']}.",
        ],
        [
            f"- Network: `{manifest['task']['model']}` {manifest['task']['model_args'] or ''}",
            f"- File: `{model['file']}`, {model['size_bytes']:,} bytes, sha256 `{model['sha256']}`",
            f"- Input: {_input(manifest['input'])}",
            *_outputs(manifest["data"]),
        ],
        ["## Measured", "", *_measured(manifest)],
        ["## How it was compressed", "", *_compression(manifest)],
        ["## How to load", "", "```python", *manifest["load"], "```"],
        *([_further(manifest["formats"])] if manifest.get("formats") else []),
        ["## How to check", "", *_check(trained)],
        ["## To be filled in", "", *_OPEN],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


_OPEN = (
    "- Licence of the original weights:",
    "- Licence of the training and evaluation data, and whether it allows this use:",
    "- Licence under which this model is passed on:",
    "- Intended use, and what it must not be used for:",
    "- Groups or conditions in which it was found weaker (compression can hurt rare classes more",
    "  than the average shows):",
    "- Person or team to ask:",
)


def _input(told: Mapping[str, Any]) -> str:
    shape = "×".join(str(n) for n in told["shape"]) if told["shape"] else "unknown shape"
    text = f"`{told['name']}`, {told['dtype']}, {shape}"
    if told["mean"] is not None:
        text += f"; pixels: {told['pixels']} (mean {told['mean']}, std {told['std']})"
    return text


def _outputs(data: Mapping[str, Any]) -> list[str]:
    classes = list(data.get("classes", ()))
    if not classes:
        return []
    shown = ", ".join(map(str, classes[:20]))
    rest = f" and {len(classes) - 20} more (all in manifest.json)" if len(classes) > 20 else ""
    return [f"- Outputs: one score a class, in this order: {shown}{rest}"]


def _measured(manifest: Mapping[str, Any]) -> list[str]:
    values, base = manifest["values"], manifest["baseline"]
    rows = [
        f"| {name} | {_with_error(name, values, manifest['errors'])} | "
        f"{_with_error(name, base, manifest['baseline_errors'])} |"
        for name in QUANTITIES
        if name in values
    ]
    data, environment = manifest["data"], manifest["environment"]
    cpu = environment.get("cpu", {})
    rung = {
        "confirm": "outside the search: no choice was made by them",
    }.get(manifest["rung"], "the same that chose this point, so the score is optimistic")
    lines = [
        "| value | this model (± one standard error) | uncompressed |",
        "|---|---|---|",
        *rows,
        "",
        f"- Scored on {manifest['examples'] or '?'} examples of {data.get('data') or 'the data'} "
        f"({rung}); differences within two standard errors are no differences.",
        f"- Timed on {cpu.get('model', 'an unknown processor')} "
        f"({', '.join(cpu.get('flags', [])) or 'features unknown'}), {_runtime(environment)}, "
        f"{environment.get('threads', '?')} thread(s), batch {environment.get('batch', '?')}, "
        "beside the uncompressed network. On another processor only the file's size is the same: "
        "`paretune pull` there measures anew.",
    ]
    return [*lines, *([f"- {manifest['remeasured']}"] if manifest["remeasured"] else [])]


def _with_error(name: str, values: Mapping[str, float], errors: Mapping[str, float]) -> str:
    shown = legible(name, values.get(name))
    return f"{shown} ± {legible(name, errors[name])}" if name in errors else shown


def _compression(manifest: Mapping[str, Any]) -> list[str]:
    plan = CompressionPlan.from_json(manifest["plan"])
    full = (manifest["original"] or {}).get("groups", {})
    cut = [
        f"| {name} | {kept} of {full[name]} |"
        for name, kept in plan.groups.items()
        if kept != full.get(name, kept)
    ]
    lines = []
    if cut:
        lines += ["| channel group | channels kept |", "|---|---|", *cut, ""]
    lines += ["| layer | weights | activations | factorised | zeros |", "|---|---|---|---|---|"]
    for name, c in plan.layers.items():
        rank = f"{c.method} rank {'×'.join(map(str, c.ranks))}" if c.method else "–"
        kind = "" if c.quantizer == "uniform" else f" {c.quantizer}"
        zeros = f"{c.sparsity} % {c.pattern}" if c.sparsity else "–"
        widths = f"{_bits(c.weight_bits)}{kind} | {_bits(c.activation_bits)}"
        lines.append(f"| {name} | {widths} | {rank} | {zeros} |")
    trained = manifest["recovery"]
    if trained:
        told = f"Then trained ({trained['method']}, {trained.get('steps', '?')} steps)."
    else:
        told = "No training took place after the compression."
    return [*lines, "", told]


def _bits(bits: int) -> str:
    return "float32" if bits == 32 else f"{bits} bits"


def _runtime(environment: Mapping[str, Any]) -> str:
    known = [
        k
        for k in ("onnxruntime", "openvino", "executorch", "litert", "tensorrt")
        if k in environment
    ]
    return ", ".join(f"{k} {environment[k]}" for k in known) or "an unknown runtime"


def _further(formats: Sequence[Mapping[str, Any]]) -> list[str]:
    """The bundle's files for other runtimes: their numbers, and how to load each."""
    lines = ["## For other runtimes"]
    for one in formats:
        shown = [f"{n} {legible(n, one['values'].get(n))}" for n in _SHOWN if n in one["values"]]
        lines += ["", f"`{one['file']}` on {_runtime(one['environment'])}: {', '.join(shown)}", ""]
        lines += ["```python", *one["load"], "```"]
    return lines


def _check(trained: bool) -> list[str]:
    lines = [
        f"`python {VERIFIER}` in this folder (numpy and onnxruntime are all it needs) compares "
        "every file with its sha256 and runs the stored examples again.",
    ]
    if trained:
        lines += [
            "",
            f"`{WEIGHTS}` holds the trained torch weights: `paretune.apply(network, plan, example, "
            f'checkpoint="{WEIGHTS}")` gives the network back, for more training.',
        ]
    return lines
