"""What a request may say: every field is checked where it is taken."""

from __future__ import annotations

import re
from typing import Any

from ..targets.wire import TIMINGS, is_digest
from .limits import Limits


class Refusal(Exception):
    """An answer other than success: an HTTP status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Fields:
    """The fields of a request, each checked where it is taken."""

    def __init__(self, fields: dict[str, Any], limits: Limits) -> None:
        self._fields, self._limits = fields, limits

    def digest(self, name: str) -> str:
        """A model's hash."""
        value = self._fields.get(name)
        if not is_digest(value):
            raise Refusal(400, f"{name}: the hash of a model is expected")
        return str(value)

    def nonce(self) -> str:
        """What the answer must repeat."""
        value = self._fields.get("nonce")
        if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Za-z]{16,128}", value):
            raise Refusal(400, "nonce: 16 to 128 letters and digits are expected")
        return value

    def threads(self) -> int:
        """Threads of the session, at most what the agent allows."""
        value = self._fields.get("threads", 1)
        if type(value) is not int or not 1 <= value <= self._limits.threads:
            raise Refusal(400, f"threads: 1 to {self._limits.threads} are allowed")
        return value

    def seconds(self) -> float:
        """How long to measure: learning and doubt included, it must end before the wall limit."""
        value, most = self._fields.get("seconds", 2.0), self._limits.wall_s / TIMINGS
        if type(value) not in (int, float) or not 0 < value <= most:
            raise Refusal(400, f"seconds: more than 0 and at most {most:g} are allowed")
        return float(value)

    def states(self) -> dict[str, Any] | None:
        """Speed states learned before, or None; their content is checked where they are used."""
        value = self._fields.get("states")
        if value is not None and not isinstance(value, dict):
            raise Refusal(400, "states: a mapping is expected")
        return value
