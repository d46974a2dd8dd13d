"""Reconstruction of the network's answers as a whole: a short label-free gradient descent.

What layer-wise least squares cannot do, joint changes of several layers through the activations
between them, a few hundred steps of Adam can: the compressed network's outputs are drawn to the
original's on unlabelled calibration inputs (matching of logits: Ba and Caruana, "Do Deep Nets
Really Need to be Deep?", NeurIPS 2014, section 2.2), and so is every residual sum whose channels
were not cut (block by block, as in Li et al., "BRECQ", ICLR 2021, section 3.2, but all at once).
Weights step along orthogonalised gradients (Jordan et al., "Muon", 2024), in which directions that
the gradient hardly has move as far as its main ones: factors need it, half the steps do. Biases and
BatchNorm factors step by Adam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .hooked import run_hooked
from .sampling import is_sampled
from .sums import WatchedSums

BATCH = 64
RATE, WEIGHT_RATE = 2e-3, 5e-3
SUMS = 1.0
"""What the sums count beside the outputs."""


@torch.inference_mode(False)
def refine(
    network: nn.Module, original: nn.Module, inputs: Tensor, steps: int, seed: int = 0
) -> None:
    """Draw ``network``'s answers to the original's on ``inputs`` (n, ...), in place.

    steps: gradient steps of :data:`BATCH` inputs each, drawn without replacement until fewer are
    left. BatchNorm statistics stay, and so do layers that still give what the original's give:
    behind them nothing needs gradients. The outputs' squared difference is divided by the
    original's variance, so that the rate suits any network.
    """
    same = _unchanged(network, original, inputs[:1])
    generator = torch.Generator().manual_seed(seed)
    known = [p for p in network.parameters() if p.is_floating_point()]
    wanted = [p.requires_grad for p in known]
    trained = [p for p in known if id(p) not in same]
    if not trained:
        return
    for parameter in known:
        parameter.requires_grad_(id(parameter) not in same)
    stepping = _Steps(trained, steps)
    order: list[int] = []
    try:
        with torch.enable_grad():
            for _ in range(steps):
                if len(order) < min(BATCH, len(inputs)):
                    order = torch.randperm(len(inputs), generator=generator).tolist()
                rows, order = order[:BATCH], order[BATCH:]
                batch = inputs[rows].clone()
                with torch.no_grad():
                    target = _answers(original, batch)
                loss = _distance(_answers(network, batch), target)
                loss.backward()  # type: ignore[no-untyped-call]
                stepping.step()
    finally:
        for parameter, before in zip(known, wanted, strict=True):
            parameter.requires_grad_(before)
            parameter.grad = None


class _Steps:
    """Both optimisers; their rates rise and fall over ``steps`` steps."""

    def __init__(self, parameters: Sequence[nn.Parameter], steps: int) -> None:
        self._weights = [p for p in parameters if p.dim() > 1]
        self._rows = [nn.Parameter(_rows(p)) for p in self._weights]  # the same memory
        others = [p for p in parameters if p.dim() <= 1]
        self._optimisers: list[Any] = []
        if self._rows:
            weights = torch.optim.Muon(
                self._rows, WEIGHT_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
            self._optimisers.append(weights)
        if others:
            self._optimisers.append(torch.optim.Adam(others, RATE))
        self._rates = [
            torch.optim.lr_scheduler.OneCycleLR(
                one, one.defaults["lr"], total_steps=max(steps, 2), cycle_momentum=False
            )
            for one in self._optimisers
        ]

    def step(self) -> None:
        """Along the parameters' gradients, which are then gone."""
        for rows, weight in zip(self._rows, self._weights, strict=True):
            rows.grad = None if weight.grad is None else weight.grad.reshape(rows.shape)
            weight.grad = None
        for one, rate in zip(self._optimisers, self._rates, strict=True):
            one.step()
            one.zero_grad()
            rate.step()


def _rows(weight: nn.Parameter) -> Tensor:
    """(out, rest), on the memory of ``weight``."""
    weight.data = weight.data.contiguous()
    return weight.data.view(len(weight), -1)


def _unchanged(network: nn.Module, original: nn.Module, inputs: Tensor) -> set[int]:
    """The parameters, by identity, of layers whose results are the original's to the bit."""
    theirs, mine = _results(original, inputs), _results(network, inputs)
    return {
        id(parameter)
        for name, results in mine.items()
        if len(results) == len(theirs.get(name, ()))
        and all(torch.equal(a, b) for a, b in zip(results, theirs[name], strict=True))
        for parameter in network.get_submodule(name).parameters(recurse=False)
    }


def _results(network: nn.Module, inputs: Tensor) -> dict[str, list[Tensor]]:
    """What each module without children gives, call by call."""
    found: dict[str, list[Tensor]] = {}

    def note(_: nn.Module, __: object, out: object, name: str) -> None:
        if isinstance(out, Tensor):
            found.setdefault(name, []).append(out.clone())

    hooks = [
        module.register_forward_hook(lambda m, a, out, n=name: note(m, a, out, n))
        for name, module in network.named_modules()
        if not any(module.children())
    ]
    run_hooked(network, inputs, hooks)
    return found


def _answers(network: nn.Module, batch: Tensor) -> list[Tensor]:
    """The outputs and every residual sum, in order."""
    found: list[Tensor] = []

    def on_sum(_: str, __: str | None, ___: Tensor, total: Tensor) -> Tensor:
        found.append(total)
        return total

    with WatchedSums(network, is_sampled, on_sum):
        return [network(batch), *found]


def _distance(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Squared difference of the outputs plus the mean one of the sums, in shares of variances."""
    if len(found) != len(wanted):  # a sum was not recognised: the outputs alone
        found, wanted = found[:1], wanted[:1]
    shares = [
        (f - w).square().mean() / w.var().clamp_min(1e-12)
        for f, w in zip(found, wanted, strict=True)
        if f.shape == w.shape
    ]
    total: Tensor = shares[0] + SUMS * sum(shares[1:]) / max(1, len(shares) - 1)
    return total
