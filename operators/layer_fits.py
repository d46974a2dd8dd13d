"""Layers refitted at once, without running the compressed network, and remembered.

What :mod:`.reconstruct` does on the inputs that the compressed network gives each layer is done on
those that the original network gives it, cut: their moments C are known beforehand, so that a layer
W whose input channels K stay becomes W C[:, K] inverse(C[K, K]) (the weights after Optimal Brain
Surgeon's cut, see surgeon.py). Errors of the layers before are not made up for; plans are ranked
nearly as by the full fit all the same (random plans of ResNet-20: rank correlation .99 of the
divergences, in a twentieth of its time), and most candidates find their layers made already.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .answers import Answers
from .hooked import run_hooked
from .least_squares import RIDGE, second_moments
from .metric import solve_right
from .module_cache import ModuleCache
from .reconstruct import Rank, across, factored
from .sampling import is_fitted

EXAMPLES = 128
"""Inputs that the moments are taken of."""


class LayerFits:
    """Refitted layers of one network, by what is cut and factorised.

    network: the original, run once on the first :data:`EXAMPLES` of ``inputs`` (n, ...) float32.
    answers: of the same network and inputs. fit: to the original's outputs; False: factors of the
    weights as they are. whiten: factors that change the outputs least, else the weights.
    most_bytes: of layers that are remembered.
    """

    def __init__(
        self,
        network: nn.Module,
        answers: Answers,
        inputs: Tensor,
        *,
        fit: bool = True,
        whiten: bool = True,
        most_bytes: int = 256 << 20,
    ) -> None:
        self._network, self._answers = network, answers
        self._fit, self._whiten = fit, whiten
        noted = answers.first(EXAMPLES, len(inputs))
        self._moments = _moments(network, noted, inputs[:EXAMPLES])
        self._made: ModuleCache[nn.Module] = ModuleCache(most_bytes)

    def __contains__(self, name: object) -> bool:
        return name in self._moments

    def layer(
        self,
        name: str,
        module: nn.Module,
        lost_in: Sequence[int],
        lost_out: Sequence[int],
        rank: Rank | None,
    ) -> nn.Module:
        """What stands for the layer ``name``, of which ``module`` is the cut form.

        lost_in, lost_out: its input and output channels that are gone. rank: its factorisation, or
        None. Raises CandidateError naming a layer whose ranks do not fit.
        """
        key = (name, tuple(lost_in), tuple(lost_out), rank)
        return self._made.get(
            key, lambda: self._make(name, copy.deepcopy(module), lost_in, lost_out, rank)
        )

    @torch.no_grad()
    def _make(
        self,
        name: str,
        module: Any,
        lost_in: Sequence[int],
        lost_out: Sequence[int],
        rank: Rank | None,
    ) -> nn.Module:
        original: Any = self._network.get_submodule(name)
        second, mean = self._moments[name]
        taps = original.weight[0, 0].numel()
        into = _staying(original.weight.shape[1], lost_in).repeat_interleave(taps)
        out = _staying(len(original.weight), lost_out)
        whole = original.weight.detach().flatten(1)[out].double()
        among = second[into][:, into].double()
        weight = whole[:, into]
        if self._fit:
            cross = whole @ second[:, into].double() - weight @ among
            weight = weight + solve_right(cross, among, RIDGE)
        if rank is None:
            module.weight.copy_(weight.reshape(module.weight.shape))
            made: nn.Module = module
        else:
            curvature = self._answers.curvature.get(name) if self._whiten else None
            minds = across(None if curvature is None else curvature[out][:, out], int(out.sum()))
            made = factored(module, weight, rank, name, among if self._whiten else None, minds)
        if self._fit and module.bias is not None:
            last: Any = made if rank is None else made[-1]  # type: ignore[index]
            last.bias.add_((whole @ mean - _at(made, module, mean[into])).to(last.bias))
        return made


def _moments(
    network: nn.Module, answers: Answers, inputs: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """(d, d) float32 and (d,) float64 moments of the patches of every layer that may be fitted."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(module: Any, args: tuple[Tensor, ...], name: str) -> None:
        if name not in found:  # a layer that is called again keeps its first inputs
            centred = name in answers.normed or module.bias is not None
            patches = list(answers.places[name].patches(module, args[0]))
            second, mean = second_moments(patches, centred)
            found[name] = second.float(), mean

    hooks = [
        module.register_forward_pre_hook(lambda m, a, n=name: note(m, a, n))
        for name, module in network.named_modules()
        if is_fitted(module) and name in answers.places
    ]
    run_hooked(network, inputs, hooks)
    return found


def _at(made: nn.Module, module: Any, patch: Tensor) -> Tensor:
    """What the weights of ``made``, one layer or factors of ``module``, give for a patch (d,)."""
    layers: Any = made if isinstance(made, nn.Sequential) else [made]
    if isinstance(module, nn.Linear):
        given = patch
        for layer in layers:
            given = functional.linear(given, layer.weight.double())
        return given
    given = patch.reshape(1, module.in_channels, *module.kernel_size)
    for layer in layers:
        given = functional.conv2d(given, layer.weight.double(), groups=layer.groups)
    return given.flatten()


def _staying(count: int, lost: Sequence[int]) -> Tensor:
    stay = torch.ones(count, dtype=torch.bool)
    stay[list(lost)] = False
    return stay
