"""Writes the reference pages from the code: ``python docs/generate.py`` (a test says when to)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer

from paretune.cli import app
from paretune.search.job_schema import editor_schema

HERE = Path(__file__).parent
MADE = "<!-- Written by docs/generate.py; do not edit. -->"
_SECTIONS = {  # where a section stands in a job file
    "JobSections": "",
    "TaskSection": "task",
    "DataSection": "task.data",
    "SpaceSection": "space",
    "Prune": "space.prune",
    "Rank": "space.rank",
    "CompressSection": "compress",
    "TargetSection": "target",
    "RemoteSection": "target.remote",
    "SearchSection": "search",
    "PatienceSection": "search.patience",
    "RecoverSection": "recover",
    "ClusterSection": "cluster",
    "TrackerSection": "tracker",
    "MlflowSection": "tracker.mlflow",
}


def job_file_page() -> str:
    """The job-file reference, from the JSON Schema that editors use."""
    schema = editor_schema()
    parts: dict[str, Any] = {"JobSections": schema, **schema["$defs"]}
    order = [name for name in _SECTIONS if name in parts]
    order += [name for name in parts if name not in _SECTIONS]
    lines = [
        MADE,
        "# Job file",
        "",
        "Every key of a job file. Unknown keys, wrong types and values out of bounds are refused",
        "with the line they stand on, before anything is started. Relative paths start from the",
        "file's folder; `${NAME}` in paths and arguments is replaced from the environment. An",
        "editor shows the same while you write: [Editors](workbench.md).",
        "",
    ]
    for name in order:
        place = _SECTIONS.get(name, re.sub("Section$", "", name).lower())
        lines += [f"## `{place}`" if place else "## The file", ""]
        lines += [_cell(parts[name].get("description", "")), ""]
        lines += ["| key | value | default | |", "|---|---|---|---|"]
        required = parts[name].get("required", [])
        for key, entry in parts[name]["properties"].items():
            default = "**required**" if key in required else _default(entry)
            told = _cell(entry.get("description", ""))
            lines.append(f"| `{key}` | {_kind(entry)} | {default} | {told} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default")
    if value is None or value == [] or value == {} or "$ref" in str(value):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if not isinstance(value, list) else "`[" + ", ".join(map(str, value)) + "]`"


def _kind(entry: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        place = _SECTIONS.get(name, re.sub("Section$", "", name).lower())
        return f"[section](#{place.replace('.', '')})"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        kinds = [_kind(k) for k in entry["anyOf"] if k.get("type") != "null"]
        *first, last = dict.fromkeys(kinds)
        return f"{', '.join(first)} or {last}" if first else last
    kind = entry.get("type")
    if kind == "array":
        items = entry.get("items", {})
        return f"list of {_kind(items)}" if items else "list"
    if kind in ("integer", "number"):
        low = entry.get("minimum", entry.get("exclusiveMinimum"))
        high = entry.get("maximum", entry.get("exclusiveMaximum"))
        words = "whole number" if kind == "integer" else "number"
        bounds = [
            *(
                [f"from {_number(low)}" if "minimum" in entry else f"above {_number(low)}"]
                if low is not None
                else []
            ),
            *(
                [f"to {_number(high)}" if "maximum" in entry else f"below {_number(high)}"]
                if high is not None
                else []
            ),
        ]
        return " ".join([words, *bounds])
    return {"string": "text", "boolean": "`true`, `false`", "object": "mapping"}.get(kind, "any")


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e5 else f"{value:,.0f}"


def commands_page() -> str:
    """The command reference, from the command line itself."""
    root = typer.main.get_command(app)
    lines = [
        MADE,
        "# Commands",
        "",
        "`paretune COMMAND --help` prints the same. What exit codes mean:",
        "[Exit codes](workbench.md#exit-codes).",
        "",
        "These options stand before the command:",
        "",
        *_table(root, click.Context(root, info_name="paretune")),
    ]
    for path, command in _walk(root, ()):
        context = click.Context(command, info_name=" ".join(["paretune", *path]))
        lines += [f"## {' '.join(path)}", "", _cell(command.get_short_help_str(1000)), ""]
        lines += [
            "```text",
            " ".join(command.get_usage(context).split()).removeprefix("Usage: "),
            "```",
            "",
        ]
        lines += _table(command, context)
    return "\n".join(lines)


def _table(command: Any, context: Any) -> list[str]:
    """Arguments and options of a command, a row each."""
    rows = [_parameter(p, context) for p in command.get_params(context) if p.name != "help"]
    return ["| | | default |", "|---|---|---|", *rows, ""] if rows else []


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name in sorted(command.commands):
        if not command.commands[name].hidden:
            yield from _walk(command.commands[name], (*path, name))


def _parameter(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        name, default = f"`{parameter.metavar or parameter.name.upper()}`", "**required**"
        told = getattr(parameter, "help", "") or ""
        if not parameter.required:
            default = ""
    else:
        flags = [*parameter.opts, *parameter.secondary_opts]
        name, told = ", ".join(f"`{flag}`" for flag in flags), parameter.help or ""
        value = parameter.default() if callable(parameter.default) else parameter.default
        value = getattr(value, "value", value)
        default = "**required**" if parameter.required else ""
        if value not in (None, False, [], ()) and "UNSET" not in repr(value).upper():
            default = f"`{value}`" if value is not True else f"`{parameter.opts[0]}`"
    return f"| {name} | {_cell(told)} | {default} |"


PAGES = {"job-file.md": job_file_page, "commands.md": commands_page}


if __name__ == "__main__":
    for file, page in PAGES.items():
        (HERE / file).write_text(page(), encoding="utf-8")
        print(f"wrote {HERE / file}")
