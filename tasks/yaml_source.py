"""A strict YAML reader: plain data with line numbers, and one clear line for anything else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml import events
from yaml.resolver import Resolver

from ..errors import InputError

MOST_BYTES = 1_000_000
MOST_DEPTH = 32

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = Resolver()
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_EXPONENT = re.compile(r"([-+]?)([0-9]+)?(?:\.([0-9]*))?[eE]([-+]?)([0-9]+)")

Key = str | int


@dataclass(frozen=True)
class Lines:
    """The line on which each value of a file stands: ``lines(("search", "trials")) -> 12``."""

    numbers: Mapping[tuple[Key, ...], int]

    def __call__(self, path: tuple[Key, ...] = ()) -> int:
        """Line (from 1) of the value at ``path``; of the nearest enclosing one if it is absent."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.numbers:
                return self.numbers[path[:end]]
        return self.numbers.get((), 1)


def read_yaml(path: Path | str) -> tuple[dict[str, Any], Lines]:
    """The mapping in a YAML file, and a function from a path of keys to its line number.

    Values are str, int, float, bool, None, list and dict with text keys. Refused with InputError
    (``job.yaml:LINE: ...``): a file that is missing, empty, over 1 MB, not UTF-8, not YAML, not a
    mapping or several documents; tags, anchors, aliases, merge keys, duplicate keys, nesting over
    32; numbers that YAML 1.1 reads otherwise than they look (``010``, ``12:30``, ``1e-3``).
    """
    try:
        if not Path(path).is_file():
            kind = "it is a folder" if Path(path).is_dir() else "no such file"
            raise InputError(str(path), kind, "name a YAML file")
        with open(path, "rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(repr(str(path)), f"cannot be read ({error})", "") from error
    return parse_yaml(raw, str(path))


def parse_yaml(raw: bytes, name: str) -> tuple[dict[str, Any], Lines]:
    """:func:`read_yaml` for bytes; ``name`` stands for the file in messages."""
    if len(raw) > MOST_BYTES:
        raise InputError(name, f"larger than {MOST_BYTES:,} bytes", "this is not a job file")
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{name}:{line}", "contains a NUL byte", "save it as UTF-8 text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{name}:{line}", "is not UTF-8 text", "save it as UTF-8") from None
    builder = _Builder(name)
    try:
        loader = _Loader(text)
        try:
            while loader.check_event():
                builder.take(loader.get_event())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        spot = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        problem = " ".join(str(error.problem or error.context or "syntax error").split())
        lines = text.splitlines()
        tab = mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]
        remedy = "indent with spaces, not tabs" if tab else "check indentation, quotes and brackets"
        raise InputError(spot, f"not valid YAML: {problem[:200]}", remedy) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1 if isinstance(error.position, int) else 1
        raise InputError(
            f"{name}:{line}", "contains a control character", "save it as plain UTF-8 text"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(
            name, f"not valid YAML: {' '.join(str(error).split())[:200]}", ""
        ) from None
    return builder.result()


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML text that :func:`read_yaml` reads back equal."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)


class _Dumper(yaml.SafeDumper):
    """Writes every text in quotes unless it is a plain word, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: Any, text: str) -> Any:
    plain = _WORD.fullmatch(text) and _plain_value(text, "") == text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _quoted)


class _Frame:
    """One open mapping or list while the file is read."""

    def __init__(self, path: tuple[Key, ...], container: dict[str, Any] | list[Any]) -> None:
        self.path, self.container = path, container
        self.key: str | None = None
        self.key_lines: dict[str, int] = {}


class _Builder:
    """Turns parser events into plain data, refusing whatever a job file has no use for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.documents = 0
        self.stack: list[_Frame] = []
        self.root: Any = None
        self.numbers: dict[tuple[Key, ...], int] = {}

    def take(self, event: events.Event) -> None:
        line = (event.start_mark.line if event.start_mark else 0) + 1
        spot = f"{self.name}:{line}"
        if isinstance(event, events.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise InputError(spot, "a second document starts here", "keep one per file")
        elif isinstance(event, events.AliasEvent):
            raise InputError(spot, f"alias *{event.anchor}", "anchors and aliases are not allowed")
        elif isinstance(event, events.NodeEvent):
            if event.anchor is not None:
                raise InputError(
                    spot, f"anchor &{event.anchor}", "anchors and aliases are not allowed"
                )
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise InputError(spot, f"tag {tag[:80]!r}", "tags are not allowed; remove it")
            if isinstance(event, events.ScalarEvent):
                self._scalar(event, line, spot)
            else:
                self._open({} if isinstance(event, events.MappingStartEvent) else [], line, spot)
        elif isinstance(event, events.MappingEndEvent | events.SequenceEndEvent):
            self.stack.pop()

    def _open(self, container: dict[str, Any] | list[Any], line: int, spot: str) -> None:
        if len(self.stack) >= MOST_DEPTH:
            raise InputError(spot, f"nesting deeper than {MOST_DEPTH}", "make it flatter")
        path = self._place(container, line, spot)
        self.stack.append(_Frame(path, container))

    def _scalar(self, event: events.ScalarEvent, line: int, spot: str) -> None:
        frame = self.stack[-1] if self.stack else None
        if frame and isinstance(frame.container, dict) and frame.key is None:
            self._key(event, frame, line, spot)
            return
        value = _plain_value(event.value, spot) if event.implicit[0] else event.value
        self._place(value, line, spot)

    def _key(self, event: events.ScalarEvent, frame: _Frame, line: int, spot: str) -> None:
        key = event.value
        if event.implicit[0]:
            value = None if key == "<<" else _plain_value(key, spot)
            if not isinstance(value, str):
                what = "merge keys are not allowed" if key == "<<" else "quote it"
                raise InputError(spot, f"key {key!r} is not text", what)
        if key in frame.key_lines:
            first = frame.key_lines[key]
            raise InputError(
                spot, f"duplicate key {key!r}, first on line {first}", "remove one of the two"
            )
        frame.key_lines[key] = line
        frame.key = key

    def _place(self, value: Any, line: int, spot: str) -> tuple[Key, ...]:
        """Put a value where it belongs; its path."""
        if not self.stack:
            self.root = value
            path: tuple[Key, ...] = ()
        else:
            frame = self.stack[-1]
            if isinstance(frame.container, list):
                path = (*frame.path, len(frame.container))
                frame.container.append(value)
            elif frame.key is None:
                raise InputError(spot, "a list or mapping is used as a key", "keys are plain text")
            else:
                path = (*frame.path, frame.key)
                line = frame.key_lines[frame.key]
                frame.container[frame.key] = value
                frame.key = None
        self.numbers[path] = line
        return path

    def result(self) -> tuple[dict[str, Any], Lines]:
        if self.documents == 0 or self.root is None:
            raise InputError(self.name, "the file is empty", "expected a mapping, `name: ...`")
        if not isinstance(self.root, dict):
            kind = "a list" if isinstance(self.root, list) else f"{self.root!r:.60}"
            line = self.numbers.get((), 1)
            raise InputError(
                f"{self.name}:{line}", f"expected a mapping, got {kind}", "start with `name: ...`"
            )
        return self.root, Lines(self.numbers)


def _plain_value(text: str, spot: str) -> Any:
    """The value of an unquoted scalar. Dates stay text; misleading numbers are refused."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)).rsplit(":", 1)[-1]
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in ("true", "yes", "on")
    if tag in ("int", "float"):
        return _number(text, tag, spot)
    match = _EXPONENT.fullmatch(text)
    if match and (match[2] or match[3]):
        sign, whole, part, power_sign, power = match.groups()
        better = f"{sign}{whole or 0}.{part or 0}e{power_sign or '+'}{power}"
        raise InputError(
            spot, f"YAML reads {text[:60]!r} as text", f"write {better[:60]} (or quote it)"
        )
    return text


def _number(text: str, tag: str, spot: str) -> int | float:
    if len(text) > 60:
        raise InputError(spot, f"a number of {len(text)} characters", "shorten it or quote it")
    special = text.lower().lstrip("+-")
    if special in (".inf", ".nan"):
        return float(text.replace(".", "", 1))
    if tag == "int" and _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        return int(digits, 16) if "x" in digits else int(digits)
    if tag == "float" and _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    raise InputError(
        spot,
        f"{text!r} is not a plain decimal number (YAML 1.1 reads it as base 2, 8 or 60)",
        "write it in decimal, or quote it if it is text",
    )
