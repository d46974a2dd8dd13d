"""The targets that paretune knows, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import InputError, nearest
from .onnxruntime_cpu import OnnxRuntimeCpu
from .remote import PREFIX, Remote
from .target import Target

TARGETS: dict[str, Callable[..., Target]] = {"onnxruntime-cpu": OnnxRuntimeCpu}


def make_target(
    name: str, options: Mapping[str, Any] | None = None, where: str = "target"
) -> Target:
    """The target called ``name``, e.g. ``make_target("onnxruntime-cpu", {"format": "qdq"})``.

    where: the place in the user's file that messages name. Raises InputError on an unknown
    target or option (with the nearest known one), a wrong value, or a runtime not installed.
    """
    given = dict(options or {})
    if name.startswith(PREFIX):
        maker: Callable[..., Target] = partial(Remote, name)
        known = [*_options(Remote), *_options(OnnxRuntimeCpu)]
    elif name in TARGETS:
        maker, known = TARGETS[name], _options(TARGETS[name])
    else:
        places = [*TARGETS, "remote:https://HOST:PORT"]
        raise InputError(where, f"unknown target {name!r}", nearest(name, places))
    for option in given:
        if option not in known:
            raise InputError(
                f"{where}.{option}", f"unknown option of {name!r}", nearest(option, known)
            )
    try:
        return maker(**given)
    except InputError as error:
        raise InputError(f"{where}: {error.where}", error.problem, error.remedy) from error


def _options(maker: Callable[..., Target]) -> list[str]:
    named = inspect.Parameter.KEYWORD_ONLY
    return [n for n, p in inspect.signature(maker).parameters.items() if p.kind is named]
