"""The least squares of one layer: its weights drawn towards outputs that it should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .metric import root

RIDGE = 1e-3
"""Pull towards the weights before the fit, as a share of the inputs' mean second moment."""

Patches = Sequence[tuple[slice, Tensor]]
"""What a layer reads, chunk by chunk: (images, (images places, d))."""


@dataclass(frozen=True)
class Moments:
    """Sums over patches x (d,) in float64: how many, of x, of x x^T."""

    count: int
    first: Tensor
    second: Tensor

    @classmethod
    def of(cls, chunks: Sequence[Tensor]) -> Moments:
        """chunks: (n, d) float32 each."""
        count, first, second = 0, Tensor(), Tensor()
        for rows in chunks:
            total, square = rows.sum(0).double(), (rows.T @ rows).double()
            first, second = (first + total, second + square) if count else (total, square)
            count += len(rows)
        return cls(count, first, second)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.first + other.first, self.second + other.second
        )

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    def about(self, centre: Tensor) -> Tensor:
        """E[(x - c)(x - c)^T] (d, d)."""
        across = torch.outer(self.mean, centre)
        return self.second / self.count - across - across.T + torch.outer(centre, centre)


@dataclass(frozen=True)
class Lacking:
    """Sums over the same patches in float64: of what the outputs lack y (out,), and of y x^T."""

    first: Tensor
    cross: Tensor

    def __add__(self, other: Lacking) -> Lacking:
        return Lacking(self.first + other.first, self.cross + other.cross)

    def about(self, centre: Tensor, at: Tensor, given: Moments) -> Tensor:
        """E[(y - b)(x - c)^T] (out, d) of the patches ``given``, b = ``centre`` and c = ``at``."""
        mean = self.first / given.count
        cross = self.cross / given.count - torch.outer(centre, given.mean)
        return cross - torch.outer(mean - centre, at)


def second_moments(patches: Patches, centred: bool) -> tuple[Tensor, Tensor]:
    """C = E[x x^T] (d, d) and E[x] (d,) of the patches, float64; ``centred``: about the mean,
    which a bias or a BatchNorm behind the layer takes care of (else E[x] is given as 0)."""
    found = Moments.of([rows for _, rows in patches])
    mean = found.mean if centred else torch.zeros_like(found.first)
    return found.about(mean), mean


class LeastSquares:
    """The least squares of one layer.

    given: what it reads; weight: its weights (out, d); patches of what it reads; centred: see
    :func:`second_moments`; ridge: see :data:`RIDGE`.

    A change is made only where one half of the patches vouches for the other: fitted to the first
    half, it must draw the second one nearer. Of few examples, or of inputs that tell little about
    what the outputs lack, a fit takes up the noise, with weights that grow without bound where
    those inputs are small (behind an attention over many tokens, e.g.).
    """

    def __init__(
        self, given: Tensor, weight: Tensor, patches: Patches, centred: bool, ridge: float = RIDGE
    ) -> None:
        self.given, self.weight = given, weight
        self._patches, self._centred, self._ridge = patches, centred, ridge
        rows = [rows for _, rows in patches]
        self._halves = tuple(Moments.of(part) for part in _halved(rows))
        self._whole = self._halves[0] + self._halves[1]

    @property
    def second(self) -> Tensor:
        """The second moments (d, d) of the patches."""
        return self._whole.about(self._centre(self._whole))

    def fit(self, target: Tensor) -> None:
        """Change the weights so that the layer gives ``target`` (images, places, out)."""
        weight = self.weight
        self._take_up(
            [
                Lacking(wanted.first - weight @ had.first, wanted.cross - weight @ had.second)
                for wanted, had in zip(self._lacking(target), self._halves, strict=True)
            ]
        )

    def add(self, lacks: Tensor) -> None:
        """Change the weights so that the layer gives ``lacks`` (images, places, out) besides."""
        self._take_up(self._lacking(lacks))

    def _lacking(self, target: Tensor) -> list[Lacking]:
        wanted = _halved([target[images].flatten(0, 1) for images, _ in self._patches])
        given = _halved([rows for _, rows in self._patches])
        found = []
        for ys, xs in zip(wanted, given, strict=True):
            first: Any = sum(y.double().sum(0) for y in ys)
            cross: Any = sum((y.T @ x).double() for y, x in zip(ys, xs, strict=True))
            found.append(Lacking(first, cross))
        return found

    def _take_up(self, lacking: Sequence[Lacking]) -> None:
        """Ridge regression towards no change."""
        if self._vouched(*lacking):
            self.weight = self.weight + self._change(lacking[0] + lacking[1], self._whole)

    def _vouched(self, first: Lacking, second: Lacking) -> bool:
        one, other = self._halves
        if not one.count:  # a single patch
            return True
        change = self._change(first, one)
        at = self._centre(one)
        centre = self._centre_of(first, one)
        gain = 2 * second.about(centre, at, other) - change @ other.about(at)
        return float((change * gain).sum()) > 0

    def _change(self, lacking: Lacking, given: Moments) -> Tensor:
        cross = lacking.about(self._centre_of(lacking, given), self._centre(given), given)
        lower = self._lower if given is self._whole else self._lower_of_half
        return torch.cholesky_solve(cross.T, lower).T

    @cached_property
    def _lower(self) -> Tensor:
        return root(self.second, self._ridge)

    @cached_property
    def _lower_of_half(self) -> Tensor:
        half = self._halves[0]
        return root(half.about(self._centre(half)), self._ridge)

    def _centre(self, moments: Moments) -> Tensor:
        return moments.mean if self._centred else torch.zeros_like(moments.first)

    def _centre_of(self, lacking: Lacking, given: Moments) -> Tensor:
        centre = lacking.first / given.count
        return centre if self._centred else torch.zeros_like(centre)


def _halved(chunks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The first half of every chunk's rows, and the second."""
    first = [rows[: len(rows) // 2] for rows in chunks]
    return first, [rows[len(rows) // 2 :] for rows in chunks]
