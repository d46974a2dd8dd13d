"""Validation errors of a job file, told as one line that names the line, the key and the cure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..errors import InputError, nearest

Path = tuple[str | int, ...]

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
}


def explain(
    error: ValidationError, data: Any, model: type[BaseModel], where: Callable[[Path], str]
) -> InputError:
    """The most telling of ``error``'s complaints as an InputError.

    data: what was validated against ``model``. where: a path of keys -> "job.yaml:12: a.b".
    Unknown keys come first (a typo also makes a key missing), then the deepest complaint.
    """
    found: dict[Path, list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_data_path(item["loc"], data), []).append(item)
    # a union complains once a branch; what lies inside the branch that fits tells more
    inner = {p: i for p, i in found.items() if not any(_encloses(p, other) for other in found)}
    path, items = min(inner.items(), key=lambda entry: _urgency(entry[1]))
    return _told(path, items, model, where)


def _encloses(outer: Path, inner: Path) -> bool:
    return len(outer) < len(inner) and inner[: len(outer)] == outer


def _urgency(items: Sequence[Any]) -> int:
    kinds = {item["type"] for item in items}
    return 0 if "extra_forbidden" in kinds else 2 if "missing" in kinds else 1


def _told(
    path: Path, items: Sequence[Any], model: type[BaseModel], where: Callable[[Path], str]
) -> InputError:
    first = items[0]
    kind, context, value = first["type"], first.get("ctx", {}), first["input"]
    spot = where(path)
    if kind == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        return InputError(spot, f"unknown key {_show(path[-1])}", nearest(str(path[-1]), known))
    if kind == "missing":
        return InputError(where(path[:-1]), f"the key {_show(path[-1])} is missing", "add it")
    expected = list(dict.fromkeys(_EXPECTED[i["type"]] for i in items if i["type"] in _EXPECTED))
    if all(i["type"] in _EXPECTED for i in items):
        problem = f"expected {' or '.join(expected)}, got {_show(value)}"
        return InputError(spot, problem, _retype(value, expected))
    told = next(i for i in items if i["type"] not in _EXPECTED)
    kind, context = told["type"], told.get("ctx", {})
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context.get("expected", ""))
        remedy = nearest(str(value), allowed) if allowed else f"write {context.get('expected')}"
        return InputError(spot, f"{_show(value)} is not known here", remedy)
    if kind == "finite_number":
        return InputError(spot, f"expected a finite number, got {_show(value)}", "")
    for bound, words in (("le", "at most"), ("lt", "below"), ("ge", "at least"), ("gt", "above")):
        if bound in context:
            share = bound == "le" and context["le"] == 1 and 1 < value <= 100
            hint = (
                f"did you mean {value / 100:g}?" if share and isinstance(value, int | float) else ""
            )
            return InputError(spot, f"{_show(value)} must be {words} {context[bound]:g}", hint)
    if kind in ("too_short", "string_too_short") and not value:
        return InputError(spot, "is empty", "fill it in, or remove the key")
    if kind in ("too_long", "string_too_long"):
        unit = "entries" if kind == "too_long" else "characters"
        return InputError(spot, f"more than {context['max_length']} {unit}", "shorten it")
    if kind == "string_pattern_mismatch" and path[:1] == ("name",):
        return InputError(spot, f"{_show(value)} has a slash or a control character", "remove it")
    if kind == "string_pattern_mismatch":
        return InputError(spot, f"{_show(value)} is not known here", "write 8, or w4a32")
    message = str(told["msg"])
    return InputError(spot, message[0].lower() + message[1:], "")


def _retype(value: Any, expected: list[str]) -> str:
    """What to write when the type is wrong."""
    number = {"a number", "a whole number"} & set(expected)
    if isinstance(value, str) and number:
        if re.fullmatch(r"[-+]?[0-9]+", value):
            return "remove the quotes"
        return "write it as 1.0e-3" if re.fullmatch(r"[-+]?[0-9.]+[eE].*", value) else ""
    if "a whole number" in expected and isinstance(value, float):
        return "round it"
    if "text" in expected and isinstance(value, bool | int | float):
        return "put quotes around it if it is meant as text"
    if value is None:
        return "fill it in, or remove the key"
    if expected == ["a list"] and not isinstance(value, Mapping):
        return "put it in brackets"
    return ""


def _show(value: Any) -> str:
    """A value in a message: repr, shortened; containers by kind."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _data_path(location: tuple[str | int, ...], data: Any) -> Path:
    """pydantic's location without the names of union branches."""
    path: list[str | int] = []
    for step, part in enumerate(location):
        last = step == len(location) - 1
        inside = isinstance(data, Mapping) and part in data
        inside = inside or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
            path.append(part)
        elif last and isinstance(data, Mapping) and not _is_branch(str(part)):
            path.append(part)  # a missing key
    return tuple(path)


def _is_branch(part: str) -> bool:
    return (
        part in ("bool", "str", "int", "float")
        or "[" in part
        or "constrained" in part
        or (part[:1].isupper())
    )


def _known_keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that may stand in the mapping at ``path``."""
    current: type[BaseModel] | None = model
    for part in path:
        if current is None or part not in current.model_fields:
            break
        current = _model_in(current.model_fields[str(part)].annotation)
    return list(current.model_fields) if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        found = _model_in(part)
        if found:
            return found
    return None
