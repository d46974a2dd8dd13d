"""Carrying a plan out on a network: prune, factorise, correct; then the bits for the export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..spaces.attention import rewrite
from ..spaces.plan import CompressionPlan
from ..spaces.shortcut import ShortcutConv
from ..spaces.space import SearchSpace, require
from ..spaces.surgery import cut, lost_entries
from ..spaces.trace import ChannelGroup
from ..targets.onnx_calibrate import LEAST_EXAMPLES
from ..targets.target import Bits, Grid
from ..tasks.compress_section import CompressSection
from .answers import Answers, record_answers
from .evidence import weight_slopes
from .factorise import FactorCache
from .importance import Evidence, Importances, channel_importance, gather
from .layer_bits import bits_by_layer, choice_of, weighted_layers
from .layer_fits import LayerFits
from .normalise import Moments, input_moments, reestimating
from .prune import choose_channels
from .quantise import quantise
from .reconstruct import Rank, Refit
from .refine import refine
from .sampling import affordable, is_fitted
from .sparsify import sparsify

NORMALISE_EXAMPLES = 128
"""Calibration inputs that BatchNorm statistics are re-estimated on (64 give as good results as
512; more only cost time)."""
IMPORTANCE_EXAMPLES = 512
"""Calibration inputs that channels are ranked on."""
RECONSTRUCT_EXAMPLES = 256
"""Calibration inputs that layers are refitted on."""
LEAST_RECONSTRUCT = 32
"""With fewer calibration inputs layers are left as they are: a fit would learn them by heart."""


@dataclass
class Compressed:
    """A network on its way through the steps.

    network: the compressed copy, eval mode. kept: channels that stay, of each group that was cut.
    lost: output channels each module lost. statistics: buffers before a reconstruction.
    bits: module name in ``network`` -> Bits, for every convolution and linear layer.
    grids: of the layers whose weights lie on one already, for the export.
    """

    network: nn.Module
    kept: dict[str, list[int]] = field(default_factory=dict)
    lost: dict[str, list[int]] = field(default_factory=dict)
    bits: dict[str, Bits] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)


class Compressor:
    """Carries plans out on one network; what they share is computed once.

    network: eval mode, CPU; never modified. space: from :func:`discover` on the same network.
    calibration: (n, ...) float32 inputs for activation-aware importance and for BatchNorm, or None
        (then magnitudes rank the channels and BatchNorm statistics stay).
    options: how plans are carried out, the job's ``compress`` section.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        space: SearchSpace,
        calibration: Tensor | None = None,
        options: CompressSection | None = None,
    ) -> None:
        self.options = options = options or CompressSection()
        self.space, self._example, self._calibration = space, example, calibration
        if calibration is not None:
            _check_calibration(calibration, example)
            if options.activation_ranges != "minmax" and len(calibration) < LEAST_EXAMPLES:
                raise InputError(
                    "calibration",
                    f"{len(calibration)} examples are too few for {options.activation_ranges!r} "
                    "activation ranges",
                    f"give at least {LEAST_EXAMPLES}, or take minmax",
                )
        self.original = rewrite(network, example)
        self._shortcuts = {
            n for n, m in self.original.named_modules() if isinstance(m, ShortcutConv)
        }
        self.normalise = options.normalise if calibration is not None else "none"
        fits = (options.reconstruct or options.whiten) and calibration is not None
        self._refits = fits and len(calibration) >= LEAST_RECONSTRUCT  # type: ignore[arg-type]
        count = NORMALISE_EXAMPLES
        if self._refits:
            count = affordable(self.original, example, RECONSTRUCT_EXAMPLES)
        self._inputs = None if calibration is None else calibration[:count]
        self._importance = Importances(self._importance_of, space.groups)
        self._factors = FactorCache()

    def on(self, network: nn.Module, space: SearchSpace) -> Compressor:
        """The same options and inputs on another network, e.g. one that was cut and recovered."""
        return Compressor(network, self._example, space, self._calibration, self.options)

    @torch.inference_mode(False)
    def compress(self, plan: CompressionPlan, *, quantised: bool = True) -> Compressed:
        """A compressed copy of the network; with ``quantised`` False the weights are not rounded
        yet, for training. Raises CandidateError naming the layer that refuses."""
        plan = require(plan, self.space)
        work = Compressed(copy.deepcopy(self.original))
        for step in STEPS:
            if quantised or step is not Compressor._quantise:
                step(self, plan, work)
        return work

    @torch.inference_mode(False)
    def shape(self, plan: CompressionPlan, *, quantised: bool = False) -> Compressed:
        """A quick look at the float32 form: nothing is run, layers are refitted to the original's
        inputs (:mod:`.layer_fits`) and BatchNorm statistics left for the caller to re-estimate.
        With ``quantised`` weights lie on their grids too, nothing being corrected for that: a file
        of it is as large and as fast as the plan's. Raises CandidateError naming the layer that
        refuses."""
        plan = require(plan, self.space)
        work = Compressed(copy.deepcopy(self.original))
        self._prune(plan, work)
        self._fit_layers(plan, work)
        self._sparsify(plan, work)
        if quantised:
            self._assign_bits(plan, work)
            self._round(plan, work, None)
        return work

    def _importance_of(self, group: ChannelGroup) -> Tensor:
        method, evidence = self._evidence
        mix, seed = self.options.importance_mix, self.options.importance_seed
        return channel_importance(self.original, group, method, evidence, mix=mix, seed=seed)

    @cached_property
    def _evidence(self) -> tuple[str, Evidence]:
        """This and what follows is gathered when a plan first needs it."""
        inputs = self._calibration
        ranked = None if inputs is None else inputs[:IMPORTANCE_EXAMPLES]
        return gather(self.original, self.options.importance, ranked)

    @cached_property
    def _answers(self) -> Answers | None:
        if not self._refits or self._inputs is None:
            return None
        return record_answers(self.original, self._inputs, curved=self.options.whiten)

    @cached_property
    def _moments(self) -> Moments:
        if self._inputs is None or self.normalise == "none":
            return {}
        return input_moments(self.original, self._inputs)

    @cached_property
    def _fits(self) -> LayerFits | None:
        if self._answers is None or self._inputs is None:
            return None
        options = self.options
        return LayerFits(
            self.original,
            self._answers,
            self._inputs,
            fit=options.reconstruct,
            whiten=options.whiten,
        )

    def _prune(self, plan: CompressionPlan, work: Compressed) -> None:
        work.kept = choose_channels(self.space.groups, plan.groups, self._importance)
        work.lost = cut(work.network, self.space.groups, work.kept)

    def _factorise(self, plan: CompressionPlan, work: Compressed) -> None:
        for name, choice in plan.layers.items():
            module = work.network.get_submodule(name)
            fitted = self._refits and is_fitted(module)  # in the next step
            if choice.method is not None and not fitted:
                factors = self._factors.factorise(module, choice.method, choice.ranks, name)
                work.network.set_submodule(name, factors)

    def _reconstruct(self, plan: CompressionPlan, work: Compressed) -> None:
        """One pass over the calibration inputs: refit what changed, re-estimate BatchNorm too."""
        layers = ((n, c, work.network.get_submodule(n)) for n, c in plan.layers.items())
        ranks = {n: Rank(c.method, c.ranks) for n, c, m in layers if c.method and is_fitted(m)}
        if not (work.lost or ranks) or self._answers is None or self._inputs is None:
            return
        work.statistics = {n: b.clone() for n, b in work.network.named_buffers()}
        refit = Refit(
            work.network,
            self._answers,
            {**self._readers(work), **ranks},
            work.lost,
            fit=self.options.reconstruct,
            whiten=self.options.whiten,
        )
        with refit, reestimating(work.network, self._moments, work.lost, self.normalise):
            work.network(self._inputs)

    def _fit_layers(self, plan: CompressionPlan, work: Compressed) -> None:
        """The quick form of the two steps before: no pass over the inputs."""
        chosen = {n: c for n, c in plan.layers.items() if c.method is not None}
        ranks = {n: Rank(str(c.method), c.ranks) for n, c in chosen.items()}
        lost = lost_entries(self.space.groups, work.kept)
        for name, rank in {**self._readers(work), **ranks}.items():
            module = work.network.get_submodule(name)
            if self._fits is not None and name in self._fits:
                gone = lost.get((name, "in"), []), lost.get((name, "out"), [])
                work.network.set_submodule(name, self._fits.layer(name, module, *gone, rank))
            elif rank is not None:
                factors = self._factors.factorise(module, rank.method, rank.ranks, name)
                work.network.set_submodule(name, factors)

    def _readers(self, work: Compressed) -> dict[str, Rank | None]:
        """Layers whose inputs lost channels, if layers are refitted."""
        names = {
            reader
            for group in self.space.groups
            if self.options.reconstruct and any(p in work.lost for p in group.producers())
            for reader in group.consumers()
        }
        return {n: None for n in names if is_fitted(work.network.get_submodule(n))}

    def _sparsify(self, plan: CompressionPlan, work: Compressed) -> None:
        asked = {name: c for name, c in plan.layers.items() if c.sparsity}
        scores: dict[str, Tensor] = {}
        if asked and self.options.zeros == "gradient" and self._inputs is not None:
            scores = weight_slopes(work.network, self._inputs)
        for name, choice in asked.items():
            below = {n[len(name) :].lstrip("."): s for n, s in scores.items() if _is_in(n, name)}
            sparsify(work.network.get_submodule(name), choice.sparsity, choice.pattern, below)

    def _normalise(self, plan: CompressionPlan, work: Compressed) -> None:
        zeros = any(c.sparsity for c in plan.layers.values())
        changed = work.lost or any(c.method for c in plan.layers.values())
        if self._inputs is None or not (zeros or (changed and not work.statistics)):
            return
        for name, buffer in work.network.named_buffers():
            if name in work.statistics:  # anew from the original's, now with the zeros
                buffer.copy_(work.statistics[name])
        with torch.no_grad(), reestimating(work.network, self._moments, work.lost, self.normalise):
            work.network(self._inputs)

    def _refine(self, plan: CompressionPlan, work: Compressed) -> None:
        """Gradient steps; not where weights must stay zero."""
        steps, zeros = self.options.refine, any(c.sparsity for c in plan.layers.values())
        changed = work.lost or any(c.method for c in plan.layers.values())
        if steps and self._calibration is not None and changed and not zeros:
            refine(work.network, self.original, self._calibration, steps)

    def _assign_bits(self, plan: CompressionPlan, work: Compressed) -> None:
        work.bits = self.bits(plan, weighted_layers(work.network))

    def bits(self, plan: CompressionPlan, names: Iterable[str]) -> dict[str, Bits]:
        """Bits of each convolution and linear layer of the compressed network, by name."""
        return bits_by_layer(plan, names, self._shortcuts)

    def _quantise(self, plan: CompressionPlan, work: Compressed) -> None:
        inputs = None if self._inputs is None else self._inputs[:NORMALISE_EXAMPLES]
        self._round(plan, work, inputs)

    def _round(self, plan: CompressionPlan, work: Compressed, inputs: Tensor | None) -> None:
        kinds = {n: choice_of(n, plan).quantizer for n in work.bits}
        work.grids = quantise(work.network, work.bits, kinds, self.options, inputs)


STEPS: tuple[Callable[[Compressor, CompressionPlan, Compressed], None], ...] = (
    Compressor._prune,
    Compressor._factorise,
    Compressor._reconstruct,
    Compressor._sparsify,
    Compressor._normalise,
    Compressor._refine,
    Compressor._assign_bits,
    Compressor._quantise,
)
"""The order in which a plan is carried out; activations are rounded in the exported file only."""


def _check_calibration(inputs: Tensor, example: Tensor) -> None:
    if not len(inputs):
        raise InputError("calibration", "no examples", "give some of the training inputs")
    if inputs.shape[1:] != example.shape[1:]:
        given, wanted = list(inputs.shape[1:]), list(example.shape[1:])
        raise InputError(
            "calibration", f"examples of shape {given}, the network takes {wanted}", ""
        )
    if not bool(torch.isfinite(inputs).all()):
        raise InputError("calibration", "its inputs hold NaN or infinity", "check the data")


def _is_in(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
