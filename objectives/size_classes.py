"""File size as colour and shape: a few classes of size over the baseline's, apart for every eye."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .answers import ratio

if TYPE_CHECKING:
    from .front import ParetoFront
    from .point import Point

LADDER = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
MOST = 5
VIRIDIS = {  # matplotlib's, dark to light; yellow is left out, it is lost on white
    1: ("#31688e",),
    2: ("#443983", "#35b779"),
    3: ("#440154", "#21918c", "#90d743"),
    4: ("#440154", "#31688e", "#35b779", "#a5c800"),
    5: ("#440154", "#3b528b", "#21918c", "#5ec962", "#b8c400"),
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down")
SIGNS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "triangle-down": "▼"}
UNKNOWN = "#8b949e"


@dataclass(frozen=True)
class SizeClass:
    """Sizes from low to high times the baseline's, and how they are drawn."""

    low: float
    high: float
    colour: str
    symbol: str

    @property
    def label(self) -> str:
        """``below 0.1×``, ``0.1–0.15×``, ``above 1×``."""
        if self.low == 0:
            return f"below {self.high:g}×"
        if self.high == float("inf"):
            return f"above {self.low:g}×"
        return f"{self.low:g}–{self.high:g}×"

    @property
    def sign(self) -> str:
        """The symbol as a character, for legends in text."""
        return SIGNS[self.symbol]


def size_classes(front: ParetoFront) -> list[SizeClass]:
    """At most five classes on a fixed ladder that hold every point drawn in colour, small to large.

    Sizes that hardly differ share a class: colour never blows up a difference of a few per cent.
    Points that cannot stand on the front are grey crosses and have no class of their own.
    """
    drawn = [p for p in front.points if p.front or (p.feasible and p.trusted)]
    drawn = [p for p in drawn if p.number != front.baseline_number]
    shares = [s for p in drawn if (s := ratio(front, p, "size_bytes")) is not None]
    bounds = [0.0, *LADDER, float("inf")]
    while True:
        steps = sorted({bisect_right(bounds, share) for share in shares})
        if len(steps) <= MOST:
            break
        bounds = [0.0, *bounds[2:-1:2], float("inf")]
    colours = VIRIDIS.get(len(steps), ())
    return [
        SizeClass(bounds[step - 1], bounds[step], colour, symbol)
        for step, colour, symbol in zip(steps, colours, SYMBOLS, strict=False)
    ]


def class_of(front: ParetoFront, point: Point, classes: list[SizeClass]) -> SizeClass | None:
    """Where a point belongs; None where its size or the baseline's is not known."""
    share = ratio(front, point, "size_bytes")
    if share is None:
        return None
    return next((c for c in classes if c.low <= share < c.high), None)
