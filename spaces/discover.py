"""Finding a network's search space: what may be cut, quantised and factorised on a target."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError, nearest
from ..tasks.user_code import last_line
from ..tasks.weights import check_finite
from .attention import rewrite
from .choices import Choices
from .factors import Shape, methods_for, rank_options
from .heads import head_groups, without_heads
from .layer import Layer
from .shortcut import ShortcutConv
from .space import RANK_STEP, SearchSpace
from .surgery import cut, spread
from .trace import ChannelGroup, is_plain_layer, trace_groups


@torch.inference_mode(False)
def discover(
    network: nn.Module,
    example: Tensor,
    choices: Choices | None = None,
    *,
    prune: bool = True,
    factorise: bool = True,
    freeze: Sequence[str] | None = None,
) -> SearchSpace:
    """The search space of ``network``, traced once on the untouched network.

    network: eval mode, on the CPU; not modified. example: one input (1, ...) float32.
    choices: what the target can use (:class:`Choices`). prune, factorise: offer those families.
    freeze: module names (a prefix freezes everything below it) that are left alone; None = the
        classifier, i.e. the layer that is called last. The output's own channels are never cut.

    Raises InputError when the network cannot be run, copied or traced, when a frozen name does not
    exist (nearest named), or when nothing is left to choose.

    >>> space = discover(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 224, 224))
    >>> print(len(space.parameters), "choices")
    """
    choices = choices or Choices()
    rewritten = rewrite(_runnable(network, example), example)
    groups = without_heads(trace_groups(rewritten, example), rewritten, example) if prune else []
    heads, headless = head_groups(rewritten, example) if prune else ((), {})
    groups += heads
    modules = {n: m for n, m in rewritten.named_modules() if _is_layer(m)}
    if not modules:
        raise InputError("task.model", "it has no convolution or linear layer", "nothing to do")
    used = _layers_in_use(rewritten, example, modules)
    if freeze is None:
        freeze = [used[-1]] if used else []
    _check_names(freeze, rewritten)
    frozen = {name: "frozen" for name in modules if _below(name, freeze)}
    frozen |= {
        name: f"{type(module).__name__} has a forward of its own"
        for name, module in modules.items()
        if not is_plain_layer(module)
    }
    frozen |= {name: "not used by the forward pass" for name in modules if name not in used}
    frozen |= {f"heads of {name}": reason for name, reason in headless.items()}

    cuttable = []
    for group in groups:
        reason = group.fixed or next(
            (f"{p} is frozen" for p in group.producers() if _below(p, freeze)), None
        )
        if reason:
            frozen[f"{group.unit} of {group.name}"] = reason
        else:
            cuttable.append(group)
    cuttable, broken = _verified(rewritten, example, cuttable)
    frozen |= {f"channels of {name}": reason for name, reason in broken.items()}
    keeps = {g.name: choices.kept(g.channels, g.blocks) for g in cuttable}
    cuttable = [g for g in cuttable if len(keeps[g.name]) > 1]

    layers = []
    for name in used:
        module = modules[name]
        if name in frozen or isinstance(module, ShortcutConv):
            continue
        layers.append(_layer(name, module, cuttable, choices, factorise))
    space = SearchSpace(
        groups=tuple(cuttable),
        keeps={g.name: keeps[g.name] for g in cuttable},
        layers=tuple(layers),
        frozen=frozen,
    )
    if not space.parameters:
        raise InputError("space", "nothing is left to choose", "freeze less or allow more families")
    return space


def _runnable(network: nn.Module, example: Tensor) -> nn.Module:
    check_finite(network.state_dict(), "task.model")
    try:
        with torch.inference_mode():
            out = network(example)
    except Exception as error:
        raise InputError(
            "task.model",
            f"its forward fails on an input of shape {tuple(example.shape)}: {last_line(error)}",
            "check the model's arguments and the data's size",
        ) from error
    if not isinstance(out, Tensor):
        raise InputError(
            "task.model", f"it returns {type(out).__name__}, not a tensor", "wrap it so it does"
        )
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise InputError(
            "task.model",
            f"the network cannot be copied: {last_line(error)}",
            "keep locks, open files and the like out of it",
        ) from error


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)


def _layers_in_use(
    network: nn.Module, example: Tensor, modules: Mapping[str, nn.Module]
) -> list[str]:
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))  # type: ignore[misc]
        for name, module in modules.items()
    ]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(order))


def _check_names(freeze: Sequence[str], network: nn.Module) -> None:
    known = [name for name, _ in network.named_modules() if name]
    for name in freeze:
        if name not in known:
            above = name.rpartition(".")[0]  # as who names a parameter
            hint = f"did you mean {above!r}?" if above in known else nearest(name, known)
            raise InputError("space.freeze", f"no module named {name!r}", hint)


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def _verified(
    network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Groups whose smallest cut leaves a network that runs with the same output shape.

    All are tried at once; only if that fails, each by itself.
    """
    with torch.inference_mode():
        shape = network(example).shape
    if _survives(network, example, groups, shape):
        return list(groups), {}
    good: list[ChannelGroup] = []
    broken: dict[str, str] = {}
    for group in groups:
        if _survives(network, example, [group], shape):
            good.append(group)
        else:
            broken[group.name] = "cutting it breaks the forward pass"
    while good and not _survives(network, example, good, shape):
        group = good.pop()
        broken[group.name] = "cutting it together with others breaks the forward pass"
    return good, broken


def _survives(
    network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup], shape: torch.Size
) -> bool:
    copied = copy.deepcopy(network)
    kept = {}
    for g in groups:
        part = g.channels // g.blocks
        kept[g.name] = spread(range(part), max(1, part // 2) * g.blocks, g.blocks, g.channels)
    try:
        cut(copied, groups, kept)
        with torch.inference_mode():
            return bool(copied(example).shape == shape)
    except Exception:  # whatever the network's own code makes of the cut
        return False


def _layer(
    name: str,
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    choices: Choices,
    factorise: bool,
) -> Layer:
    if isinstance(module, nn.Linear):
        kind, out, into, kernel, conv_groups = (
            "linear",
            module.out_features,
            module.in_features,
            1,
            1,
        )
    else:
        if not isinstance(module, nn.Conv1d | nn.Conv2d):
            raise TypeError(type(module).__name__)
        kind, out, into = "conv", module.out_channels, module.in_channels
        kernel, conv_groups = 1, module.groups
        for k in module.kernel_size:
            kernel *= k
    shape, offered = _factorable(module, choices) if factorise else (None, ())
    return Layer(
        name=name,
        kind=kind,
        out_channels=out,
        in_channels=into,
        kernel=kernel,
        conv_groups=conv_groups,
        bits=choices.bits,
        rank_options=rank_options(
            offered,
            choices.rank_ratios,
            choices.rank_energies,
            shape,
            module.weight,
            RANK_STEP,
        )
        if shape is not None
        else (),
        kernel_size=tuple(getattr(module, "kernel_size", (1, 1))),
        parts_out=_parts(name, "out", groups),
        parts_in=_parts(name, "in", groups),
        zeros=tuple(z for z in choices.zeros if z[1] != "2:4" or into // conv_groups % 4 == 0),
    )


def _factorable(module: nn.Module, choices: Choices) -> tuple[Shape | None, tuple[str, ...]]:
    """The layer's shape and the methods offered for it; (None, ()) where none fits."""
    weight = module.weight
    kernel = tuple(getattr(module, "kernel_size", (1, 1)))
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    fitting = methods_for(kind, kernel, getattr(module, "groups", 1))
    if not fitting or not isinstance(weight, Tensor):
        return None, ()
    offered = fitting[:1] if choices.rank_methods is None else choices.rank_methods
    sides = (kernel[0], kernel[1])
    return Shape(weight.shape[0], weight.shape[1], sides), tuple(m for m in offered if m in fitting)


def _parts(name: str, side: str, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    out = {}
    for group in groups:
        for member in group.members:
            if member.module == name and member.side == side:
                out[group.name] = len(member.entries) // group.channels
    return out
