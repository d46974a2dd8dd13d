"""Running only the part of a network that a change reaches, for any torch network.

Whatever was computed before the first changed module started cannot have changed. Modules that
had finished by then are replaced by their recorded results; code between modules runs as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOST_BYTES = 512 << 20


class Replay:
    """Recorded results of every module of ``network`` on ``inputs`` (n, ...).

    most_bytes: of results that are kept; those of outer modules first. A module called twice, or
    whose result is no tensor, is always run.
    """

    def __init__(self, network: nn.Module, inputs: Tensor, most_bytes: int = MOST_BYTES) -> None:
        self.inputs = inputs
        self._spans: dict[str, tuple[int, int]] = {}
        self._results: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        clock, held, hooks = [0], [0], []

        def watch(name: str, module: nn.Module) -> None:
            def enter(*_: object) -> None:
                clock[0] += 1
                self._calls[name] = self._calls.get(name, 0) + 1
                self._spans[name] = (self._spans.get(name, (clock[0],))[0], clock[0])

            def leave(_: nn.Module, __: object, out: Any) -> None:
                clock[0] += 1
                self._spans[name] = (self._spans[name][0], clock[0])
                if isinstance(out, Tensor):
                    self._results[name] = out.clone()

            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))

        for name, module in network.named_modules():
            if name:
                watch(name, module)
        with torch.no_grad():
            self.outputs = network(inputs).clone()
        for hook in hooks:
            hook.remove()
        for name in sorted(self._results, key=lambda n: n.count(".")):
            held[0] += self._results[name].numel() * 4
            if held[0] > most_bytes or self._calls[name] > 1:
                held[0] -= self._results[name].numel() * 4
                del self._results[name]

    def skip(self, network: nn.Module, changed: Iterable[str]) -> int:
        """Replace, in place, what had finished before any of ``changed`` started; how many.

        network: of the same structure as the recorded one. A module that never ran by
        itself (its weights may be read by another) counts as started first.
        """
        first = min((self._spans.get(name, (0,))[0] for name in changed), default=0)
        done = {n for n in self._results if self._spans[n][1] < first}
        outer = [n for n in done if not any(_inside(n, other) for other in done)]
        for name in outer:
            parent, _, leaf = name.rpartition(".")
            network.get_submodule(parent)._modules[leaf] = _Recorded(self._results[name])
        return len(outer)


class _Recorded(nn.Module):
    """Gives a recorded result, whatever it is given."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self._result = result

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._result.clone()


def _inside(name: str, outer: str) -> bool:
    return name.startswith(outer + ".")
