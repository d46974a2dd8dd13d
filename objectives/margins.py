"""How many examples a candidate still gets right, told from a few of them.

A count of right answers among 64 examples is a poor estimate: one of them is 1.6 points. By how
much each was right says more, and by how much the original network is right is known for all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from scipy.special import ndtr
from torch import Tensor

Floats = npt.NDArray[np.float64]

_LEAST_ERROR = 1e-6  # of a margin, where a candidate computes what the original does
_MEAN_TO_STANDARD = float(np.sqrt(np.pi / 2))  # from a mean absolute deviation
_ROUNDS = 3
_SHIFT = 0.4  # of 0.1 to 1.2, what told most of 286 plans of ResNet-20, mild and heavy ones


class Margins:
    """The margins of the original network: its output for the right class less the largest other.

    outputs: its outputs (n, classes) for all examples. labels: (n,) right classes.
    """

    def __init__(self, outputs: Tensor, labels: Tensor) -> None:
        self._labels = labels.long()
        self._own = _margins(outputs, self._labels)
        self.share_right = float((self._own > 0).double().mean())

    def spread(self, wanted: int) -> Tensor:
        """Places of ``wanted`` examples (or all) that stand for all: as many of each class as it
        has, from the least to the most certain."""
        rising = torch.where(self._labels % 2 == 0, self._own, -self._own)
        order = np.lexsort((rising.numpy(), self._labels.numpy()))
        return evenly(torch.from_numpy(order), wanted).sort().values

    def lost(self, outputs: Tensor, places: Tensor) -> float:
        """Share of all examples that the original gets right and a candidate does not, less the
        share of those where it is the other way round; from its outputs (m, classes) at ``places``.

        A candidate's margins are a straight line in the original's plus normal deviations that grow
        with the margin; both are fitted to these examples and hold for all (prediction from a model
        in place of a count: Valliant, Dorfman and Royall, "Finite Population Sampling and
        Inference", 2000, chapter 2).
        """
        own = self._own[places].numpy()
        got = _margins(outputs, self._labels[places]).numpy()
        intercept, slope, (still, growing) = _fitted(own, got)
        every = self._own.numpy()
        error = np.maximum(still + growing * np.abs(every), _LEAST_ERROR)
        return self.share_right - float(ndtr((intercept + slope * every) / error).mean())


def _fitted(own: Floats, got: Floats) -> tuple[float, float, Floats]:
    """Intercept and slope of ``got`` on ``own``, and the standard error's constant and growth.

    Weighted least squares, the weights from the last round's deviations (Carroll and Ruppert,
    "Transformation and Weighting in Regression", 1988, chapter 3). An intercept moves all examples
    near zero the same way, and its error would decide between candidates that lose little. It is
    shrunk to what is likely: changes that deviate by s shift by about s squared (what is linear in
    a change averages out), in units of the margins' own spread.
    """
    size, weight = np.column_stack([np.ones(len(own)), np.abs(own)]), np.ones(len(own))
    for _ in range(_ROUNDS):
        centre, height = np.average(own, weights=weight), np.average(got, weights=weight)
        square = weight @ (own - centre) ** 2
        slope = weight @ ((own - centre) * (got - height)) / square if square > 0 else 1.0
        intercept = height - slope * centre
        deviations = np.abs(got - intercept - slope * own)
        error, _ = nnls(size, _MEAN_TO_STANDARD * deviations)
        weight = np.maximum(size @ error, _LEAST_ERROR) ** -2.0
    variance = _variance(own, weight)
    usual = _SHIFT * float((size @ error).mean()) ** 2 / max(float(own.std()), _LEAST_ERROR)
    return float(intercept * usual**2 / (usual**2 + variance)), float(slope), error


def _variance(own: Floats, weight: Floats) -> float:
    """Of the intercept, where each weight is one over its example's variance."""
    centre = np.average(own, weights=weight)
    square = weight @ (own - centre) ** 2
    return float(1 / weight.sum() + (centre**2 / square if square > 0 else 0.0))


def evenly(places: Tensor, wanted: int) -> Tensor:
    """``wanted`` of the places (or all), at equal distances."""
    if wanted >= len(places):
        return places
    at = (torch.arange(wanted, dtype=torch.float64) + 0.5) * len(places) / wanted
    return places[at.long()]


def _margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """(n, classes) and (n,) -> (n,) float64."""
    outputs = outputs.detach().double()
    right = outputs.gather(1, labels[:, None])
    return (right - outputs.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
