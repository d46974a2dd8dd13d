"""The targets that paretune knows, by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import InputError, nearest
from .clocked import ClockedTarget
from .target import Target

TARGETS: dict[str, str] = {
    "onnxruntime-cpu": "onnxruntime_cpu:OnnxRuntimeCpu",
    "onnxruntime-cuda": "onnxruntime_cuda:OnnxRuntimeCuda",
    "openvino-cpu": "openvino_cpu:OpenVinoCpu",
    "torch-cpu": "torch_eager:TorchCpu",
    "torch-cuda": "torch_eager:TorchCuda",
    "executorch-xnnpack": "executorch_xnnpack:ExecuTorchXnnpack",
    "litert": "litert:LiteRt",
    "tensorrt": "tensorrt:TensorRt",
}
"""Name -> ``file:class`` in this folder, imported when the target is asked for."""
PREFIX = "remote:"  # of targets on another machine, see remote.py


def make_target(
    name: str, options: Mapping[str, Any] | None = None, where: str = "target"
) -> Target:
    """The target called ``name``, e.g. ``make_target("onnxruntime-cpu", {"format": "qdq"})``.

    where: the place in the user's file that messages name. Raises InputError on an unknown
    target or option (with the nearest known one), a wrong value, or a runtime not installed.
    """
    given, known = dict(options or {}), option_names(name, where)
    maker: Callable[..., Target] = _class(name)
    if name.startswith(PREFIX):
        maker = partial(maker, name)
    for option in given:
        if option not in known:
            raise InputError(
                f"{where}.{option}", f"unknown option of {name!r}", nearest(option, known)
            )
    try:
        return maker(**given)
    except InputError as error:
        raise InputError(f"{where}: {error.where}", error.problem, error.remedy) from error


def option_names(name: str, where: str = "target") -> list[str]:
    """The options that a target takes. Raises InputError with the nearest known name."""
    if name.startswith(PREFIX):
        return [*_options(_class(name)), *_options(_class("onnxruntime-cpu"))]
    if name not in TARGETS:
        places = [*TARGETS, f"{PREFIX}https://HOST:PORT"]
        raise InputError(where, f"unknown target {name!r}", nearest(name, places))
    return _options(_class(name))


def _class(name: str) -> type[Any]:
    place = "remote:Remote" if name.startswith(PREFIX) else TARGETS[name]
    file, _, cls = place.partition(":")
    found: type[Any] = getattr(importlib.import_module(f".{file}", __package__), cls)
    return found


def _options(maker: type[Any]) -> list[str]:
    """Names of a class's keyword options, those it hands on to ClockedTarget included."""
    named = inspect.Parameter.KEYWORD_ONLY
    makers = [maker, ClockedTarget] if issubclass(maker, ClockedTarget) else [maker]
    found = [p for m in makers for p in inspect.signature(m).parameters.values()]
    return list(dict.fromkeys(p.name for p in found if p.kind is named))
