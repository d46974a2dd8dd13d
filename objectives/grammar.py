"""The grammar of conditions: text to a tree of comparisons, by recursive descent.

expression := term ("or" term)*          term := factor ("and" factor)*
factor     := "not" factor | "(" expression ")" | chain
chain      := side (operator side)+      where, of two neighbours, one is a name and one a number
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple, NoReturn

from ..errors import InputError, nearest
from .condition import All, Comparison, Condition, Some, unit_of
from .objective import quantity_name

LONGEST = 2000  # characters
DEEPEST = 40  # nested parentheses and negations

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<unit>[A-Za-zµ%]*)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<operator><=|>=|==|!=|<|>)|(?P<bracket>[()]))",
    re.ASCII,
)
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_SCALES: dict[str, dict[str, float]] = {
    "bytes": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "ms": {"us": 1e-3, "µs": 1e-3, "ms": 1, "s": 1e3},
    "share": {"%": 1e-2, "pt": 1e-2},
    "x": {"%": 1e-2, "x": 1},
    "MACs": {"k": 1e3, "M": 1e6, "G": 1e9},
    "": {"k": 1e3, "M": 1e6, "G": 1e9},
}


class Token(NamedTuple):
    """One word of the text. kind: number, name, operator, bracket or end; column from 0."""

    kind: str
    text: str
    column: int
    unit: str = ""


def parse_condition(text: str, where: str, known: list[str]) -> Condition:
    """The tree of ``text``, negations pushed down to the comparisons. Raises InputError."""
    if not isinstance(text, str):
        raise InputError(where, f"expected a condition as text, got {text!r}", "")
    if len(text) > LONGEST:
        raise InputError(where, f"a condition of {len(text)} characters", f"at most {LONGEST}")
    text = " ".join(text.split())
    if not text:
        raise InputError(where, "the condition is empty", 'e.g. "accuracy_drop <= 0.01"')
    return _Parser(text, where, known).whole()


class _Parser:
    def __init__(self, text: str, where: str, known: list[str]) -> None:
        self.text, self.where, self.known = text, where, known
        self.tokens = self._split()
        self.index = 0
        self.depth = 0

    def whole(self) -> Condition:
        node = self.expression()
        if self.now.kind != "end":
            loose = self.now.kind == "name" and self.tokens[self.index - 1].kind == "number"
            unit = loose and self.now.text not in self.known
            hint = ", a unit without a space before it (1pt, 300kB)" * unit
            self.fail(f"expected 'and', 'or'{hint} or the end")
        return node

    def expression(self) -> Condition:
        parts = [self.term()]
        while self.take_word("or"):
            parts.append(self.term())
        return parts[0] if len(parts) == 1 else Some(tuple(parts))

    def term(self) -> Condition:
        parts = [self.factor()]
        while self.take_word("and"):
            parts.append(self.factor())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def factor(self) -> Condition:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"more than {DEEPEST} nested parentheses")
        if self.take_word("not"):
            node = self.factor().negated()
        elif self.now.text == "(":
            self.index += 1
            node = self.expression()
            if self.now.text != ")":
                self.fail("expected ')'")
            self.index += 1
        else:
            node = self.chain()
        self.depth -= 1
        return node

    def chain(self) -> Condition:
        left, parts = self.side(), list[Condition]()
        while self.now.kind == "operator":
            sign = self.now.text
            self.index += 1
            right = self.side()
            if {left.kind, right.kind} != {"name", "number"}:
                self.fail("one side must be a name, the other a number", right)
            if left.kind == "name":
                parts.append(Comparison(left.text, sign, self.number(right, left.text)))
            else:
                parts.append(Comparison(right.text, _FLIPPED[sign], self.number(left, right.text)))
            left = right
        if not parts:
            self.fail("expected a comparison: <, <=, >, >=, == or !=")
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def side(self) -> Token:
        token = self.now
        if token.kind == "name" and token.text.lower() not in ("and", "or", "not"):
            self.check_name(token)
        elif token.kind != "number":
            self.fail("expected a name or a number")
        self.index += 1
        return token

    def check_name(self, token: Token) -> None:
        if token.text in self.known:
            return
        suffixed = [name for name in self.known if quantity_name(name) == token.text]
        if suffixed:
            problem = f"{token.text!r} was measured on several targets"
            raise InputError(self.where, problem, "write one of: " + ", ".join(suffixed))
        raise InputError(
            self.where, f"unknown value {token.text!r:.80}", nearest(token.text, self.known)
        )

    def number(self, token: Token, name: str) -> float:
        scales = _SCALES.get(unit_of(name), {})
        factor = {unit.lower(): scale for unit, scale in scales.items()}.get(token.unit.lower())
        if token.unit and factor is None:
            units = f" (units: {', '.join(scales)})" if scales else ""
            self.fail(f"{name} does not take the unit {token.unit!r}{units}", token)
        value = float(token.text) * (factor or 1.0)
        if not math.isfinite(value):
            self.fail("the number is too large", token)
        return value

    @property
    def now(self) -> Token:
        return self.tokens[self.index]

    def take_word(self, word: str) -> bool:
        found = self.now.kind == "name" and self.now.text.lower() == word
        self.index += found
        return found

    def _split(self) -> list[Token]:
        tokens: list[Token] = []
        column = 0
        while column < len(self.text):
            match = _TOKEN.match(self.text, column)
            if match is None:
                while self.text[column] == " ":
                    column += 1
                apart = self.text[max(0, column - 2) : column + 1]
                hint = "write == for equality" if self.text[column] == "=" else "unexpected sign"
                if apart in ("< =", "> ="):
                    hint = f"write {apart[0]}= without a space"
                self.fail(hint, Token("", "", column))
            kind = next(k for k in ("number", "name", "operator", "bracket") if match[k])
            tokens.append(Token(kind, match[kind], match.start(kind), match["unit"] or ""))
            column = match.end()
        return [*tokens, Token("end", "", len(self.text))]

    def fail(self, problem: str, token: Token | None = None) -> NoReturn:
        column = (token or self.now).column
        shown = self.text[:column] + "^" + self.text[column:]
        if len(shown) > 120:
            start = max(0, column - 50)
            shown = "..." + shown[start : start + 110] + "..."
        raise InputError(self.where, f"{problem} at column {column + 1}: {shown!r}", "")
