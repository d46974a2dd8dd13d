"""One point for several runtimes: a script without paretune gets the manifest's accuracy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from paretune.deploy.pull import pull
from paretune.tasks.load import load_task

SCRIPT = Path(__file__).parents[2] / "examples" / "check_formats.py"
NEEDS = {
    "onnx": "onnxruntime",
    "openvino": "nncf",
    "executorch": "executorch",
    "litert": "ai_edge_litert",
}
HERE = [name for name, module in NEEDS.items() if importlib.util.find_spec(module)]


def formats() -> list[str]:
    from paretune.errors import InputError
    from paretune.targets.litert_environment import converter_python

    try:
        converter_python()
    except InputError:
        return [name for name in HERE if name != "litert"]
    return HERE


@pytest.mark.slow
def test_each_file_gives_the_manifests_accuracy_without_paretune(
    digits_study: Path, tmp_path: Path
) -> None:
    wanted = formats()
    if len(wanted) < 2:
        pytest.skip("none of the extras 'openvino', 'executorch', 'litert' is installed")
    bundle = pull(digits_study, tmp_path / "out", best="size_bytes", formats=wanted)
    assert [one["format"] for one in bundle.manifest["formats"]] == wanted
    task = load_task(digits_study.parent / "job.yaml")
    rungs = {one["rung"] for one in bundle.manifest["formats"]}
    split = task.evaluate if rungs == {"confirm"} else task.search
    inputs, targets = zip(*split.batches(100), strict=True)
    data = tmp_path / "data.npz"
    np.savez(data, inputs=torch.cat(inputs).numpy(), targets=torch.cat(targets).numpy())
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(bundle.folder), str(data)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": as recorded") == len(wanted)
    assert done.stdout.rstrip().endswith("without paretune")
