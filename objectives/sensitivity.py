"""How much each single option of each parameter hurts: a label-free table, measured once.

The damage of an option is the mean divergence of the outputs from the original network's, on
training images, when this option alone is taken (the single-layer sensitivity of HAWQ and SPDY).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..operators.normalise import input_moments, reestimating
from ..operators.replay import Replay
from ..spaces.space import SearchSpace
from .divergence import divergence
from .screen import Screen

VERSION = 2
"""Of the way damage is measured: tables of another one are measured anew."""
EXAMPLES = 64
FLOOR = 1e-6
"""Nats that count as no damage, where options are interpolated on a logarithmic scale."""

_Rows = dict[tuple[str, int], tuple[float, float]]  # (parameter, option) -> (damage, seconds)
Progress = Callable[[int, int], None]
"""Called with options measured and options to measure."""


@dataclass(frozen=True)
class Sensitivity:
    """The table.

    damage: parameter -> (options,) nats (or mean squared error), [0] = 0, never falling.
    measured: parameter -> options that were measured; the others are interpolated.
    dominated: parameter -> options that cost no less than a milder one.
    seconds: what the measuring took; evaluations: the same in screened candidates.
    key: digest of the weights, the images, the options and the method.
    """

    damage: dict[str, np.ndarray]
    measured: dict[str, tuple[int, ...]]
    dominated: dict[str, tuple[int, ...]]
    seconds: float
    evaluations: float
    key: str

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "damage": {n: [float(d) for d in row] for n, row in self.damage.items()},
            "measured": {n: list(row) for n, row in self.measured.items()},
            "dominated": {n: list(row) for n, row in self.dominated.items()},
            "seconds": self.seconds,
            "evaluations": self.evaluations,
            "key": self.key,
        }

    @classmethod
    def from_json(cls, data: Any, where: str = "sensitivity") -> Sensitivity:
        """Read a table back. Raises InputError when it is none of this version."""
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise InputError(where, "no sensitivity table of this version", "measure it again")
        try:
            return cls(
                {n: np.asarray(row, dtype=float) for n, row in data["damage"].items()},
                {n: tuple(row) for n, row in data["measured"].items()},
                {n: tuple(row) for n, row in data["dominated"].items()},
                float(data["seconds"]),
                float(data["evaluations"]),
                str(data["key"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                where, f"a damaged sensitivity table ({error})", "measure it"
            ) from error

    def fits(self, space: SearchSpace) -> bool:
        """Whether it has a row for each parameter of ``space``."""
        return {n: len(row) for n, row in self.damage.items()} == space.parameters


def measure(
    screen: Screen,
    budget: float,
    folder: Path | None = None,
    progress: Progress | None = None,
    seconds: float = np.inf,
) -> Sensitivity:
    """The table of ``screen``'s network, within a budget of screened candidates and ``seconds`` of
    this thread's time.

    The strongest option of every parameter comes first, then the mildest, then those between;
    what the budget leaves out is interpolated. folder: measured options are appended there, under
    the table's key, and read back by the next call: a pass that was killed goes on, another
    network, space or set of images starts a table of its own. What was read back is charged as it
    was when measured.
    """
    probe = _Probe(screen)
    path = None if folder is None else folder / f"sensitivity-{probe.key}.jsonl"
    rows = _read(path, screen.space.parameters)
    unit = rows.pop(("", 0), None)
    if unit is None:
        unit = (0.0, probe.unit_seconds())
        _append(path, "", 0, *unit)
    todo = list(_order(screen.space.parameters))
    spent = sum(seconds for _, seconds in rows.values())
    for done, (name, option) in enumerate(todo):
        if (name, option) in rows:
            continue
        if spent / unit[1] >= budget or spent >= seconds:
            break
        begin = time.thread_time()
        damage = probe.damage(name, option)
        took = time.thread_time() - begin
        rows[name, option] = damage, took
        _append(path, name, option, damage, took)
        spent += took
        if progress is not None:
            progress(done + 1, len(todo))
    damage_of = {key: damage for key, (damage, _) in rows.items()}
    table = _table(screen.space.parameters, damage_of)
    measured = {
        n: tuple(o for o in range(1, count) if (n, o) in rows)
        for n, count in screen.space.parameters.items()
    }
    dominated = _dominated(screen)
    return Sensitivity(table, measured, dominated, spent, spent / unit[1], probe.key)


class _Probe:
    """Measures single options; the part of the network before the change runs only once."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._space = screen, screen.space
        compressor = screen.compressor
        self._inputs = screen.calibration_inputs[:EXAMPLES]
        self._moments = input_moments(compressor.original, self._inputs)
        self._replay: Replay | None = None
        self._readers = {g.name: {m.module for m in g.members} for g in self._space.groups}
        digest = hashlib.sha256(f"{VERSION} {self._space.fingerprint}".encode())
        digest.update(repr(sorted(vars(compressor.options).items())).encode())
        for name, tensor in compressor.original.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        digest.update(self._inputs.numpy().tobytes())
        self.key = digest.hexdigest()[:16]

    def unit_seconds(self) -> float:
        """What one screened candidate costs: a plan with the first option of everything."""
        plan = self._space.plan(dict.fromkeys(self._space.parameters, 1))
        self._screen.networks.forget()
        self._screen.screen(plan)
        self._screen.networks.forget()
        return self._screen.screen(plan).seconds

    def damage(self, name: str, option: int) -> float:
        """Divergence of the network with this option alone."""
        if self._replay is None:
            self._replay = Replay(self._screen.compressor.original, self._inputs)
        plan = self._space.plan({name: option})
        if plan == self._space.identity:
            return 0.0
        family, _, layer = name.partition(":")
        with torch.no_grad():
            work = self._screen.compressor.shape(plan)
            changed = self._readers[layer] if family == "keep" else {layer}
            if family == "bits":
                self._screen.networks.round_only(work.network, plan, layer)
                changed |= {bn for bn, conv in self._screen.networks.pairs.items() if conv == layer}
            self._replay.skip(work.network, changed)
            outputs = []
            hook = work.network.register_forward_hook(lambda _, __, out: outputs.append(out))
            kind = "none" if family == "bits" else self._screen.compressor.normalise
            with reestimating(work.network, self._moments, work.lost, kind):
                work.network(self._inputs)
            hook.remove()
        found = divergence(self._replay.outputs, outputs[0])
        return found if np.isfinite(found) else 1e3


def _order(parameters: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Options in the order of measuring: strongest, mildest, then the middle of what is left."""
    yield from ((name, count - 1) for name, count in parameters.items())
    yield from ((name, 1) for name, count in parameters.items() if count > 2)
    gaps = [(name, 1, count - 1) for name, count in parameters.items() if count > 3]
    while gaps:
        wider = []
        for name, low, high in gaps:
            middle = (low + high) // 2
            yield name, middle
            wider += [(name, a, b) for a, b in ((low, middle), (middle, high)) if b - a > 1]
        gaps = wider


def _table(
    parameters: dict[str, int], measured: dict[tuple[str, int], float]
) -> dict[str, np.ndarray]:
    """Every option's damage: interpolated between measured ones on a logarithmic scale, then made
    never to fall. A parameter without any takes its family's median."""
    table = {}
    families: dict[str, list[float]] = {}
    for (name, option), damage in measured.items():
        if option == parameters[name] - 1:
            families.setdefault(name.partition(":")[0], []).append(damage)
    for name, count in parameters.items():
        known = {o: measured[name, o] for o in range(1, count) if (name, o) in measured}
        if not known:
            others = families.get(name.partition(":")[0]) or [1.0]
            known = {count - 1: float(np.median(others))}
        places = [0, *sorted(known)]
        logs = [np.log(FLOOR), *(np.log(max(known[o], FLOOR)) for o in sorted(known))]
        row = np.exp(np.interp(np.arange(count), places, logs))
        for option, damage in known.items():
            row[option] = damage
        row[0] = 0.0
        table[name] = np.maximum.accumulate(np.maximum(row, 0.0))
    return table


def _dominated(screen: Screen) -> dict[str, tuple[int, ...]]:
    """Options that cost no less, in anything, than a milder option of the same parameter."""
    found = {}
    for name, count in screen.space.parameters.items():
        costs = [screen.costs.costs(screen.space.plan({name: o})) for o in range(count)]
        keys = [k for k in ("size_bytes", "macs", "latency_ms") if k in costs[0]]
        worse = tuple(
            o
            for o in range(1, count)
            if any(all(costs[m][k] <= costs[o][k] for k in keys) for m in range(o))
        )
        if worse:
            found[name] = worse
    return found


def _read(
    path: Path | None, parameters: dict[str, int]
) -> dict[tuple[str, int], tuple[float, float]]:
    """Measured options of a table's file; a last line that was cut off is passed over."""
    rows: dict[tuple[str, int], tuple[float, float]] = {}
    if path is None or not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            name, option, damage, seconds = json.loads(line)
        except (ValueError, TypeError):
            continue
        if name == "" or option < parameters.get(name, 0):
            rows[name, int(option)] = float(damage), float(seconds)
    return rows


def _append(path: Path | None, name: str, option: int, damage: float, seconds: float) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"\n", b"")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps([name, option, damage, seconds]) + "\n")
