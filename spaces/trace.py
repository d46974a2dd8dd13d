"""Channel groups: which channels of which layers must be cut together.

The dependency graph is Torch-Pruning's (Fang et al., "DepGraph: Towards Any Structural Pruning",
CVPR 2023). It is traced once, on the untouched network, and kept here as plain data, so that a
candidate is cut without tracing again.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lcm

import torch
import torch_pruning
from torch import Tensor, nn

from ..errors import InputError
from ..tasks.user_code import last_line

ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_CUTTABLE = (*ROOTS, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.PReLU)


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a convolution or linear layer computes what torch's layer of this kind computes: a
    subclass whose own forward changes the weights or the padding first does not."""
    kinds = [kind for kind in ROOTS if isinstance(module, kind)]
    methods = ("forward", "_conv_forward")
    return bool(kinds) and all(
        name not in vars(module)
        and getattr(type(module), name, None) is getattr(kinds[0], name, None)
        for name in methods
    )


@dataclass(frozen=True)
class Member:
    """One side of one module that belongs to a group.

    side: ``"out"`` (output channels), ``"in"`` (input channels), or ``"heads"``: a module
        that knows how many attention heads it has.
    entries: indices along that dimension; channels: the group channel each entry belongs to.
    """

    module: str
    side: str
    entries: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together; ``name`` is the first layer that produces them.

    blocks: channels are cut in the same places in each of ``blocks`` equal parts (grouped
        convolutions), so kept counts are multiples of it.
    unit: what one channel is: ``"channels"``, or ``"heads"`` (of attention: several rows each).
    fixed: why the group cannot be cut, or None.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    blocks: int = 1
    fixed: str | None = None
    unit: str = "channels"

    def producers(self) -> tuple[str, ...]:
        """Modules whose output channels belong to the group."""
        return tuple(m.module for m in self.members if m.side == "out")

    def consumers(self) -> tuple[str, ...]:
        """Modules whose input channels belong to the group."""
        return tuple(m.module for m in self.members if m.side == "in")


def trace_groups(network: nn.Module, example: Tensor) -> tuple[ChannelGroup, ...]:
    """All channel groups of ``network``, in the order of its layers.

    network: eval mode, not modified; example: (1, ...) float32. Groups that touch something which
    cannot be cut (a free parameter, attention, the network's output) are returned with ``fixed``.
    Raises InputError when the network cannot be traced.
    """
    copied = copy.deepcopy(network).eval()
    names = {module: name for name, module in copied.named_modules()}
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    graph = torch_pruning.DependencyGraph()
    log = logging.getLogger()
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(copied, example_inputs=example.clone(), verbose=False)
            found = [_group(graph, item, names) for item in _groups(graph)]
    except Exception as error:
        raise InputError(
            "task.model",
            f"channel dependencies cannot be traced: {last_line(error)}",
            "set space.prune to false to search bit-widths and ranks only",
        ) from error
    finally:
        log.setLevel(level)
    order = {name: i for i, name in enumerate(names.values())}
    return tuple(sorted((_fix_outputs(g) for g in found), key=lambda g: order[g.name]))


def _groups(graph: torch_pruning.DependencyGraph) -> list[torch_pruning.Group]:
    return list(graph.get_all_groups(root_module_types=list(ROOTS)))


def _group(
    graph: torch_pruning.DependencyGraph,
    group: torch_pruning.Group,
    names: Mapping[nn.Module, str],
) -> ChannelGroup:
    members: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    fixed: str | None = None
    blocks = 1
    root = group[0].dep.target.module
    channels = len(group[0].idxs)
    for item in group.items:
        module, entries, of = item.dep.target.module, list(item.idxs), item.root_idxs
        if type(module).__module__.startswith("torch_pruning"):
            continue  # element-wise operations, concatenations, reshapes: no tensors of their own
        own = isinstance(module, ROOTS) and not is_plain_layer(module)
        if not isinstance(module, _CUTTABLE) or own or module not in names:
            fixed = fixed or f"it feeds {type(module).__name__}, which is not cut"
            continue
        if of is None or any(c is None for c in of):
            fixed = fixed or "its channels are rearranged in a way that cannot be followed"
            continue
        if isinstance(module, nn.GroupNorm):
            blocks = lcm(blocks, module.num_groups)
        if isinstance(module, nn.modules.conv._ConvNd) and not _is_depthwise(module):
            blocks = lcm(blocks, module.groups)
        side = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        if side == "in" and _is_channelwise(module):
            side = "out"
        held = members.setdefault((names[module], side), ([], []))
        known = set(held[0])
        for entry, channel in zip(entries, of, strict=True):
            if entry not in known:
                held[0].append(int(entry))
                held[1].append(int(channel))
    if channels % blocks:
        fixed = fixed or f"{channels} channels do not divide into {blocks} equal parts"
    order = list(names.values())
    roots = [m for m, side in members if side == "out" and _makes_channels(graph.model, m)]
    return ChannelGroup(
        name=min(roots or [names[root]], key=order.index),
        channels=channels,
        members=tuple(
            Member(module, side, tuple(e), tuple(c)) for (module, side), (e, c) in members.items()
        ),
        blocks=blocks,
        fixed=fixed,
    )


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.modules.conv._ConvNd)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def _makes_channels(network: nn.Module, name: str) -> bool:
    module = network.get_submodule(name)
    return isinstance(module, ROOTS) and not _is_depthwise(module)


def _is_channelwise(module: nn.Module) -> bool:
    """Modules whose input and output channels are the same thing."""
    return not isinstance(module, ROOTS) or _is_depthwise(module)


def _fix_outputs(group: ChannelGroup) -> ChannelGroup:
    """Channels that no layer reads are the network's output: they are never cut."""
    if group.fixed is None and not group.consumers():
        return replace(group, fixed="it is the network's output")
    return group
