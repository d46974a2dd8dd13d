"""Layer-wise output reconstruction: changed layers refitted to give the original's outputs.

Label-free: in forward order, the weights of each changed layer are chosen by least squares so that
on the *compressed* network's inputs it gives the *original* network's outputs (He et al., "Channel
Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.1; asymmetric, layer after
layer, as in Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and
Detection", TPAMI 2016, section 3.3). Factorised layers get the factors of the refitted kernel that
change the outputs least. One forward pass; a few places of every image are looked at, so that
memory and time are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .answers import Answers
from .factorise import factorise
from .least_squares import RIDGE, LeastSquares
from .metric import root
from .sampling import by_token, is_sampled
from .sums import WatchedSums

_FLOOR = (
    2e-3  # of the mean curvature: output directions that the answers do not feel count a little
)


@dataclass(frozen=True)
class Rank:
    """The factorisation that a layer is to get."""

    method: str
    ranks: tuple[int, ...]


class Refit:
    """A context in which ``network`` runs once on the calibration inputs and is refitted meanwhile.

    changed: layer -> the factorisation it gets (it is replaced at the end), or None: its weights
    are refitted in place. lost: output channels that each layer lost. fit: to the original's
    outputs; False: factors of the weights as they are. whiten: factors that change the outputs
    least, else the weights.
    Raises CandidateError naming a layer whose ranks do not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        answers: Answers,
        changed: Mapping[str, Rank | None],
        lost: Mapping[str, Sequence[int]],
        *,
        fit: bool = True,
        whiten: bool = True,
        ridge: float = RIDGE,
    ) -> None:
        self._network, self._answers, self._changed = network, answers, changed
        self._lost, self._fit, self._whiten, self._ridge = lost, fit, whiten, ridge
        self._factors: dict[str, nn.Sequential] = {}
        self._open: dict[str, LeastSquares] = {}
        self._done: set[str] = set()
        self._settled: set[str] = set()
        self._context = ExitStack()

    def __enter__(self) -> Refit:
        for name in self._changed:
            module = self._network.get_submodule(name)
            hooks = (
                module.register_forward_pre_hook(lambda m, a, n=name: self._before(m, a[0], n)),
                module.register_forward_hook(lambda m, a, o, n=name: self._after(m, a[0], o, n)),
            )
            for hook in hooks:
                self._context.callback(hook.remove)
        if self._fit:
            self._context.enter_context(WatchedSums(self._network, is_sampled, self._on_sum))
        self._context.enter_context(torch.no_grad())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._context.close()
        if kind is None:
            for name, made in self._factors.items():
                self._network.set_submodule(name, made)

    def _before(self, module: Any, given: Tensor, name: str) -> None:
        """Fit the layer's weights to the original's outputs, then factorise them."""
        if name in self._done:
            return
        self._done.add(name)
        patches = list(self._answers.places[name].patches(module, given))
        centred = name in self._answers.normed or module.bias is not None
        weight = module.weight.detach().flatten(1).double()
        fitted = LeastSquares(given, weight, patches, centred, self._ridge)
        if self._fit:
            fitted.fit(self._kept(self._answers.outputs, name))
            if name in self._answers.sums:
                self._open[name] = fitted
        self._set(module, fitted, name)

    def _set(self, module: Any, fitted: LeastSquares, name: str) -> None:
        wanted = self._changed[name]
        if wanted is None:
            module.weight.copy_(fitted.weight.reshape(module.weight.shape))
            return
        second = fitted.second if self._whiten else None
        minds = self._across(name, len(fitted.weight))
        self._factors[name] = factored(module, fitted.weight, wanted, name, second, minds)

    def _after(self, module: Any, given: Tensor, out: Tensor, name: str) -> Tensor:
        """The fitted layer's output, its mean as the original's where the layer has a bias."""
        made: Any = self._factors.get(name)
        if made is not None:
            out = made(given)
        bias = module.bias if made is None else made[-1].bias
        if self._fit and bias is not None and name not in self._settled:
            self._settled.add(name)
            out = self._shifted(out, bias, self._kept(self._answers.outputs, name), name)
        return out

    def _shifted(self, out: Tensor, bias: Tensor, target: Tensor, name: str) -> Tensor:
        missing = (target - self._there(out, name)).mean((0, 1))
        bias.add_(missing)
        linear = isinstance(self._network.get_submodule(name), nn.Linear)
        return out + (missing if linear else missing[:, None, None])

    def _there(self, out: Tensor, name: str) -> Tensor:
        """The outputs of the layer ``name`` where the answers were noted."""
        return self._answers.places[name].outputs(by_token(self._network.get_submodule(name), out))

    def _on_sum(self, name: str, norm_name: str | None, rest: Tensor, total: Tensor) -> Tensor:
        """Fit the branch that ``name`` ends to what the original's sum lacks."""
        fitted = self._open.pop(name, None)
        if fitted is None:
            return total
        module: Any = self._network.get_submodule(name)
        norm: Any = None if norm_name is None else self._network.get_submodule(norm_name)
        target = self._kept(self._answers.sums, name)
        lacks = target - self._there(total, name)
        if norm is not None:
            gain = norm.running_var.add(norm.eps).rsqrt()
            gain = gain if norm.weight is None else gain * norm.weight
            size = gain.abs().clamp_min(1e-2 * float(gain.abs().max()) + 1e-30)
            lacks = lacks / (size * torch.where(gain < 0, -1.0, 1.0))
        fitted.add(lacks)
        self._set(module, fitted, name)
        layer = self._factors.get(name)
        branch = module.forward(fitted.given) if layer is None else layer(fitted.given)
        if norm is not None:
            branch = norm.forward(branch)
        total = branch + rest
        last: Any = norm if norm is not None else module if layer is None else layer[-1]
        bias = last.bias
        return total if bias is None else self._shifted(total, bias, target, name)

    def _across(self, name: str, channels: int) -> Tensor:
        whole = self._answers.curvature.get(name)
        if whole is None or not self._whiten:
            return across(None, channels)
        stay = self._kept({name: torch.arange(len(whole))}, name)
        return across(whole[stay][:, stay], channels)

    def _kept(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        """Of ``values[name]`` (..., channels) the channels that are not lost."""
        found, lost = values[name], self._lost.get(name, ())
        if not lost:
            return found
        stay = torch.ones(found.shape[-1], dtype=torch.bool)
        stay[list(lost)] = False
        return found[..., stay]


def factored(
    module: Any, weight: Tensor, wanted: Rank, name: str, second: Tensor | None, minds: Tensor
) -> nn.Sequential:
    """Factors of ``weight`` (out, d) in place of ``module``, which is overwritten.

    second: (d, d) moments of the patches, or None; minds: see :func:`across`.
    """
    module.weight.copy_((minds.T @ weight).reshape(module.weight.shape))
    made = factorise(module, wanted.method, wanted.ranks, name, second)
    last: Any = made[-1]
    flat = last.weight.flatten(1).double()
    flat = torch.linalg.solve_triangular(minds.T, flat, upper=True)
    last.weight.copy_(flat.reshape(last.weight.shape))
    return made


def across(curvature: Tensor | None, channels: int) -> Tensor:
    """Lower triangular L (out, out), L L^T = how much the answers mind the outputs' errors.

    curvature: (out, out) of the channels that stay, or None: all alike.
    """
    if curvature is None:
        return torch.eye(channels).double()
    lower = root(curvature.double(), _FLOOR)
    return lower / lower.diagonal().mean()
