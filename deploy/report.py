"""What a person reads in the terminal about a delivered bundle."""

from __future__ import annotations

from rich.console import Console

from ..objectives.wording import label, legible
from .bundle import Bundle


def print_bundle(bundle: Bundle, register: str | None, alias: str | None) -> None:
    """What was delivered, in a few lines."""
    console = Console()
    manifest = bundle.manifest
    values, base = manifest["values"], manifest["baseline"]
    console.print(f"[bold]Delivered[/] {bundle.model}: {manifest['summary']}", highlight=False)
    for name in ("accuracy", "fidelity", "size_bytes", "latency_ms"):
        if name in values:
            was = f" (baseline {legible(name, base[name])})" if name in base else ""
            console.print(
                f"  {label(name):<10} {legible(name, values[name])}{was}", highlight=False
            )
    if manifest["remeasured"]:
        console.print(f"  [yellow]{manifest['remeasured']}[/]")
    else:
        console.print("  verified: sha256 and score are the recorded ones")
    if register:
        console.print(f"  registered as {register}" + (f"@{alias}" if alias else ""))
