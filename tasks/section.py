"""What the sections of a job file are made of: their common rules, and values that many take."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of a job: frozen, strictly typed, no unknown keys, finite numbers only."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
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
