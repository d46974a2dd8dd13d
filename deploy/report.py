"""What a person reads in the terminal about a delivered bundle."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from ..objectives.wording import label, legible
from .alias import Move
from .bundle import Bundle


def print_bundle(
    bundle: Bundle, register: str | None, alias: str | None, registered: bool = False
) -> None:
    """What was delivered, in a few lines. registered: it was taken from the model registry."""
    console = Console()
    manifest = bundle.manifest
    values, base = manifest["values"], manifest["baseline"]
    told = escape(f"{bundle.model}: {manifest['summary']}")
    console.print(f"[bold]Delivered[/] {told}", highlight=False, soft_wrap=True)
    for name in ("accuracy", "fidelity", "size_bytes", "latency_ms"):
        if name in values:
            was = f" (baseline {legible(name, base[name])})" if name in base else ""
            console.print(
                f"  {label(name):<10} {legible(name, values[name])}{was}", highlight=False
            )
    if manifest["remeasured"]:
        console.print(f"  [yellow]{escape(manifest['remeasured'])}[/]", soft_wrap=True)
    elif registered:
        console.print("  verified: every file's sha256, and the outputs for the stored examples")
    else:
        console.print("  verified: sha256 and score are the recorded ones")
    if register:
        pointed = f", {register}@{alias} points to it" if alias else ""
        told = f"  registered as {register} version {bundle.version}{pointed}"
        console.print(told, highlight=False, soft_wrap=True)


def print_move(name: str, move: Move) -> None:
    """Where an alias points now, in a line."""
    before = f"version {move.before}" if move.before else "nothing"
    was = "already there" if move.before == move.version else f"it was {before}"
    Console().print(
        f"{name}@{move.alias} is version {move.version} ({was}); its files were checked",
        highlight=False,
    )
