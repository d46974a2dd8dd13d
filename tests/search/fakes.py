"""A toy space and evaluators for the search's tests, loaded by file path (also in workers)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from paretune.errors import CandidateError, EnvironmentFault, InputError
from paretune.objectives.evaluation import Artifact, Evaluation
from paretune.spaces.plan import CompressionPlan, LayerChoice

WIDTH = 1 << 16  # of a network that is timed


@dataclass(frozen=True)
class ToySpace:
    """``layers`` layers with ``options`` ranks; ``merge``: the last option equals the first."""

    layers: int = 6
    options: int = 4
    merge: bool = False

    @property
    def parameters(self) -> dict[str, int]:
        return {f"rank:l{i}": self.options for i in range(self.layers)}

    @property
    def size(self) -> int:
        return prod(self.parameters.values())

    def plan(self, genotype: Mapping[str, int]) -> CompressionPlan:
        layers = {}
        for i in range(self.layers):
            option = genotype.get(f"rank:l{i}", 0)
            if self.merge and option == self.options - 1:
                option = 0
            layers[f"l{i}"] = LayerChoice(
                method="svd" if option else None, ranks=(64 - option,) if option else ()
            )
        return CompressionPlan({"g": 8}, layers)

    @property
    def identity(self) -> CompressionPlan:
        return self.plan({})

    def presets(self) -> list[dict[str, int]]:
        return [dict.fromkeys(self.parameters, option) for option in range(1, self.options)]


def measured(plan: CompressionPlan, rung: str = "measure") -> Evaluation:
    """The recorded values of a plan: a conflict between accuracy and size, with structure."""
    saved = [64 - c.ranks[0] if c.ranks else 0 for c in plan.layers.values()]
    drop = sum(s * (i + 1) ** 0.7 for i, s in enumerate(saved)) / (10 * len(saved) ** 2)
    drop += 0.01 * (sum(s * (7 * i % 5) for i, s in enumerate(saved)) % 7)
    size = 1000.0 - 20 * sum(s * (1 + i % 3) for i, s in enumerate(saved)) / len(saved)
    values = {
        "accuracy": 0.9 - drop,
        "size_bytes": size,
        "latency_ms": 1.0 - 0.05 * max(saved) - 0.01 * sum(saved) / len(saved),
    }
    return Evaluation(plan, rung, values, seconds={"total": 0.01})


class Toy:
    """An evaluator whose behaviour is chosen by the number of ranks of the plan's first layers.

    faults: fingerprint -> what happens to that plan; sleep_s: duration of an evaluation;
    log: a file that gets one line per evaluation.
    """

    def __init__(self, faults: dict[str, str], sleep_s: float, log: str | None) -> None:
        self.faults, self.sleep_s, self.log = faults, sleep_s, log

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{rung} {plan.fingerprint} {os.getpid()}\n")
        time.sleep(self.sleep_s)
        fault = self.faults.get(plan.fingerprint)
        if fault:
            self.suffer(fault, plan)
        if fault == "modules":
            twins = ("search", "spaces", "tasks", "targets", "trackers", "objectives", "operators")
            found = [name for name in twins if name in sys.modules]
            return Evaluation(
                plan, rung, notes={"twins": found, "cwd": os.getcwd(), "path": sys.path}
            )
        return measured(plan, rung)

    def suffer(self, fault: str, plan: CompressionPlan) -> None:
        print(f"about to suffer {fault}", file=sys.stderr, flush=True)
        if fault == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "exit":
            os._exit(7)
        elif fault == "sys.exit":
            sys.exit(3)
        elif fault == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen(["sleep", "60"])
            ctypes.PyDLL(None).sleep(60)  # in C, the interpreter's lock held
        elif fault == "memory":
            _ = bytearray(50 << 30)
        elif fault == "raise":
            raise ValueError("the weights\ncannot be factorised")
        elif fault == "candidate":
            raise CandidateError("layer l0: cannot be exported")
        elif fault == "disk":
            raise EnvironmentFault("no space left on the disk")
        elif fault == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx")
        elif fault.startswith("killed"):  # by someone else: once, or every time
            marker = fault.partition(":")[2]
            if not marker or not os.path.exists(marker):
                if marker:
                    open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(10)


class Asking(Toy):
    """Has a small file timed by the latency device, as a worker on a cluster does."""

    def connect(self, ask: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.ask = ask

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        found = super().evaluate(plan, rung, baseline, artifact)
        with tempfile.TemporaryDirectory() as folder:
            model, inputs = Path(folder) / "model.onnx", Path(folder) / "inputs.npy"
            write_relu(model, plan.fingerprint)
            np.save(inputs, np.ones((1, WIDTH), np.float32))
            asked = {"target": "onnxruntime-cpu", "path": str(model), "baseline": str(model)}
            answer = self.ask({**asked, "inputs": str(inputs)})
        if "timing" not in answer:
            raise CandidateError(answer.get("error") or str(answer))
        return found


def write_relu(path: Path, name: str) -> None:
    """An exported network of one layer; ``name`` makes it another file."""
    from onnx import TensorProto, helper, save_model

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", WIDTH]) for n in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], name, [x], [y])
    opset = [helper.make_opsetid("", 17)]
    save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def asking(**kwargs: Any) -> Asking:
    settings: dict[str, Any] = {"faults": {}, "sleep_s": 0.0, "log": None, **kwargs}
    return Asking(settings["faults"], settings["sleep_s"], settings["log"])


def toy(**kwargs: Any) -> Toy:
    settings: dict[str, Any] = {"faults": {}, "sleep_s": 0.0, "log": None, **kwargs}
    return Toy(settings["faults"], settings["sleep_s"], settings["log"])


def refused(**kwargs: Any) -> Toy:
    raise InputError("data.train", "the folder is empty", "name another")


def broken(**kwargs: Any) -> Toy:
    os.kill(os.getpid(), signal.SIGABRT)
    raise ValueError


class Nan:
    """An evaluator that answers with what no one can use."""

    def evaluate(
        self,
        plan: CompressionPlan,
        rung: str = "measure",
        baseline: Evaluation | None = None,
        artifact: Artifact | None = None,
    ) -> Evaluation:
        return Evaluation(plan, rung, {"accuracy": float("nan")})


def nan() -> Nan:
    return Nan()
