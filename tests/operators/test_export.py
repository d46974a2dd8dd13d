"""A network taken back into torch and written again: the same bytes; trained on, new ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_task import task as small_task

import paretune
from paretune.errors import InputError
from paretune.objectives.evaluate import Evaluator
from paretune.objectives.trained import TrainingPlace
from paretune.operators.trained_file import on_grids, read_grids
from paretune.spaces.choices import Choices
from paretune.spaces.discover import discover
from paretune.spaces.plan import CompressionPlan
from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.tasks.recover_section import RecoverSection

BITS = Choices(bits=((32, 32), (8, 8), (4, 8), (4, 32)))
SETTING = {"keep:conv1": 2, "rank:conv2": 1}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_apply_and_export_give_the_measured_bytes(bits: int, tmp_path: Path) -> None:
    task, target = small_task(), OnnxRuntimeCpu(seconds=0.2)
    space = discover(task.network, task.example, BITS)
    plan = space.plan({**SETTING, **{n: bits for n in space.parameters if n[:4] == "bits"}})
    evaluator = Evaluator(task, space, target, tmp_path, calibration=96, timed=False)
    measured = evaluator.evaluate(plan)
    assert not measured.failed, measured.cause
    inputs = torch.cat(task.calibration(96))
    small = paretune.apply(task.network, plan.to_json(), task.example, inputs)
    path = paretune.export(small, task.example, plan, target, tmp_path / "again.onnx", inputs)
    assert digest(path) == measured.artifact.sha256
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_recovered_point_comes_back_byte_for_byte_and_trains_on(tmp_path: Path) -> None:
    task, target = small_task(), OnnxRuntimeCpu(seconds=0.2)
    space = discover(task.network, task.example, BITS)
    plan = space.plan({**SETTING, **{n: 1 for n in space.parameters if n[:4] == "bits"}})
    options = RecoverSection(epochs=1, batch=64, holdout=64)
    evaluator = Evaluator(
        task,
        space,
        target,
        tmp_path,
        timed=False,
        training=TrainingPlace(options, tmp_path),
    )
    measured = evaluator.recover(plan, 1)
    assert not measured.failed, measured.cause
    weights = tmp_path / "artifacts" / measured.weights.file_name
    inputs = torch.cat(task.calibration())
    small = paretune.apply(task.network, plan, task.example, inputs, checkpoint=weights)
    path = paretune.export(
        small, task.example, plan, target, tmp_path / "a.onnx", inputs, checkpoint=weights
    )
    assert digest(path) == measured.artifact.sha256
    assert on_grids(small, read_grids(weights))

    with torch.no_grad():  # the owner trains on: the steps of the file no longer fit
        for parameter in small.parameters():
            parameter.mul_(1.01)
    assert not on_grids(small, read_grids(weights))
    path = paretune.export(
        small, task.example, plan, target, tmp_path / "b.onnx", inputs, checkpoint=weights
    )
    assert digest(path) != measured.artifact.sha256
    (found,) = onnxruntime.InferenceSession(str(path)).run(None, {"input": inputs.numpy()})
    with torch.inference_mode():
        expected = small(inputs).numpy()
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.97


def test_damaged_grids_and_what_does_not_fit_are_refused(tmp_path: Path) -> None:
    task = small_task()
    tensors = {"x": torch.zeros(1)}
    for told in ('{"version": 9, "layers": {}}', '{"version": 1, "layers": {"a": 3}}', "[", "{}"):
        save_file(tensors, tmp_path / "w.safetensors", metadata={"paretune.grids": told})
        with pytest.raises(InputError, match="grids"):
            read_grids(tmp_path / "w.safetensors")
    save_file(tensors, tmp_path / "w.safetensors")
    assert read_grids(tmp_path / "w.safetensors") == {}
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() is None
    space = discover(task.network, task.example)
    plan = space.plan({n: 1 for n in space.parameters if n[:4] in ("bits", "rank")})
    with pytest.raises(InputError, match="8-bit activations"):
        small = paretune.apply(task.network, plan, task.example)
        paretune.export(small, task.example, plan, path=tmp_path / "m.onnx")
    with pytest.raises(InputError, match="not factorised"):
        paretune.export(task.network, task.example, plan, path=tmp_path / "m.onnx")
    elsewhere = CompressionPlan({}, {"nowhere": next(iter(plan.layers.values()))})
    with pytest.raises(InputError, match="'nowhere'"):
        paretune.export(task.network, task.example, elsewhere, path=tmp_path / "m.onnx")
