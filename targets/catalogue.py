"""The targets that paretune knows, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError, nearest
from .onnxruntime_cpu import OnnxRuntimeCpu
from .target import Target

TARGETS: dict[str, Callable[..., Target]] = {"onnxruntime-cpu": OnnxRuntimeCpu}


def make_target(
    name: str, options: Mapping[str, Any] | None = None, where: str = "target"
) -> Target:
    """The target called ``name``, e.g. ``make_target("onnxruntime-cpu", {"format": "qdq"})``.

    where: the place in the user's file that messages name. Raises InputError on an unknown
    target or option (with the nearest known one), a wrong value, or a runtime not installed.
    """
    if name not in TARGETS:
        raise InputError(where, f"unknown target {name!r}", nearest(name, TARGETS))
    maker, given = TARGETS[name], dict(options or {})
    known = [p for p in inspect.signature(maker).parameters if p != "self"]
    for option in given:
        if option not in known:
            raise InputError(
                f"{where}.{option}", f"unknown option of {name!r}", nearest(option, known)
            )
    try:
        return maker(**given)
    except InputError as error:
        raise InputError(f"{where}: {error.where}", error.problem, error.remedy) from error
