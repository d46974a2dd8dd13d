"""What the sections of a job file are made of: their common rules, and values that many take."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def described(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Give each key of a section's JSON Schema what the section's docstring says of it.

    A docstring says what the section is, then ``key, key: text`` at the start of a sentence.
    """
    text = " ".join(inspect.getdoc(model).split()) if model.__doc__ else ""  # type: ignore[union-attr]
    names = sorted(model.model_fields, key=len, reverse=True)
    key = "|".join(map(re.escape, names)) or "(?!)"
    starts = list(re.finditer(rf"(?:^|(?<=[.;:] ))((?:{key})(?:, (?:{key}))*): ", text))
    schema["description"] = _plain(text[: starts[0].start()] if starts else text)
    for start, after in pairwise([*starts, None]):
        if start is not None:
            said = text[start.end() : after.start() if after else len(text)]
            for name in start[1].split(", "):
                schema["properties"][name]["description"] = _plain(said)
    schema.pop("title", None)
    for entry in schema["properties"].values():
        entry.pop("title", None)


def _plain(text: str) -> str:
    text = text.replace("``", "`").strip(" ;")
    text = re.sub(r" \(see :\S+`\)|;? ?see targets/\S+\.py", "", text)
    return text


class Section(BaseModel):
    """A part of a job: frozen, strictly typed, no unknown keys, finite numbers only."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        json_schema_extra=described,
    )


Text = Annotated[str, Field(min_length=1, max_length=4096)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]
Arguments = dict[str, Any]
Several = Field(strict=False)  # a tuple that takes a list


def distinct(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """``items``, checked for twins: each may be listed once."""
    for index, item in enumerate(items):
        if item in items[:index]:
            raise PydanticCustomError("twin", f"{str(item)[:60]!r} is listed twice; remove one")
    return items
