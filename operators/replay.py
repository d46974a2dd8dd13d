"""Running only the part of a network that a change reaches, for any torch network.

Whatever was computed before the first changed module started cannot have changed. Modules that
had finished by then are replaced by their recorded results; code between modules runs as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn

from .hooked import run_hooked

MOST_BYTES = 512 << 20


class Replay:
    """Recorded results of every module of ``network`` on ``inputs`` (n, ...).

    most_bytes: of results that are kept; those of outer modules first. A module called twice, or
    whose result is no tensor, is always run.
    """

    def __init__(self, network: nn.Module, inputs: Tensor, most_bytes: int = MOST_BYTES) -> None:
        self._spans: dict[str, tuple[int, int]] = {}
        self._results: dict[str, Tensor] = {}
        kept = self._chosen(self._watch(network, inputs), most_bytes)

        def keep(_: nn.Module, __: object, out: Tensor, name: str) -> None:
            self._results[name] = out.clone()

        hooks = [
            network.get_submodule(name).register_forward_hook(partial(keep, name=name))
            for name in kept
        ]
        hooks.append(network.register_forward_hook(partial(keep, name="")))
        run_hooked(network, inputs, hooks)
        self.outputs = self._results.pop("")

    def _watch(self, network: nn.Module, inputs: Tensor) -> dict[str, int]:
        """When each module starts and ends; bytes of the results of those that run once."""
        clock, hooks = count(1), []
        calls: Counter[str] = Counter()
        sizes: dict[str, int] = {}

        def watch(name: str, module: nn.Module) -> None:
            def enter(*_: object) -> None:
                calls[name] += 1
                now = next(clock)
                self._spans[name] = (self._spans.get(name, (now,))[0], now)

            def leave(_: nn.Module, __: object, out: Any) -> None:
                self._spans[name] = (self._spans[name][0], next(clock))
                if isinstance(out, Tensor):
                    sizes[name] = out.numel() * out.element_size()

            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))

        for name, module in network.named_modules():
            if name:
                watch(name, module)
        run_hooked(network, inputs, hooks)
        return {name: size for name, size in sizes.items() if calls[name] == 1}

    def _chosen(self, sizes: Mapping[str, int], most_bytes: int) -> list[str]:
        """Results that are kept, those of outer modules first."""
        chosen, held = [], 0
        for name in sorted(sizes, key=lambda n: n.count(".")):
            if held + sizes[name] <= most_bytes:
                held += sizes[name]
                chosen.append(name)
        return chosen

    def skip(self, network: nn.Module, changed: Iterable[str]) -> dict[str, nn.Module]:
        """Replace, in place, what had finished before any of ``changed`` started; the modules that
        were replaced, by name.

        network: of the same structure as the recorded one. A module that never ran by
        itself (its weights may be read by another) counts as started first.
        """
        first = min((self._spans.get(name, (0,))[0] for name in changed), default=0)
        done = {n for n in self._results if self._spans[n][1] < first}
        outer = [n for n in done if not any(n != o and is_within(n, o) for o in done)]
        replaced = {name: network.get_submodule(name) for name in outer}
        for name in outer:
            network.set_submodule(name, _Recorded(self._results[name]))
        return replaced


class _Recorded(nn.Module):
    """Gives a recorded result, whatever it is given."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self._result = result

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._result.clone()


def is_within(name: str, outer: str) -> bool:
    """Whether a module is another or a part of it, by their names."""
    return name == outer or name.startswith(outer + ".")
