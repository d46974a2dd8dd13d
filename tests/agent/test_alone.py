"""The agent as its own distribution: without torch, onnx and paretune, with the same stopwatch."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from agents import Agent
from torch import nn

from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu
from paretune.targets.remote import Remote

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "agent" / "pyproject.toml").read_text(encoding="utf-8"))
FORBIDDEN = """
import sys

class Refuse:
    names = {"torch", "paretune", "onnx", "optuna", "ray", "mlflow", "pydantic", "typer", "pandas"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} is not on a board")

sys.meta_path.insert(0, Refuse())
"""


def selected() -> dict[str, dict[str, str]]:
    """Which files the wheel is made of, as its own build says."""
    path = ROOT / "agent" / "wheel" / "selected.py"
    spec = importlib.util.spec_from_file_location("agent_wheel_selected", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    modules: dict[str, dict[str, str]] = module.MODULES
    return modules


def laid_out(folder: Path) -> Path:
    """The package as an installation would lay it, and a hook that refuses everything else."""
    for package, files in selected().items():
        where = folder.joinpath(*package.split("."))
        where.mkdir(parents=True, exist_ok=True)
        for module, source in files.items():
            shutil.copyfile(ROOT / "agent" / source, where / f"{module}.py")
    (folder / "sitecustomize.py").write_text(FORBIDDEN)
    return folder


def small_files(folder: Path) -> tuple[Path, Path, np.ndarray]:
    torch.manual_seed(0)
    for name, width in (("base", 16), ("half", 8)):
        layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten()]
        network = nn.Sequential(*layers, nn.Linear(width * 144, 4)).eval()
        OnnxRuntimeCpu().export(network, torch.zeros(1, 3, 16, 16), {}, [], folder / name)
    inputs = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    return folder / "base", folder / "half", inputs


def check(agent: Agent, folder: Path) -> None:
    """It predicts what the local runtime does, and times."""
    base, half, inputs = small_files(folder)
    target = Remote(agent.name, **agent.options, seconds=0.3)
    expected = OnnxRuntimeCpu().load(half).predict(inputs)
    np.testing.assert_array_equal(target.load(half).predict(inputs), expected)
    timing = target.time(half, base, inputs)
    assert timing.unstable or 0.1 < timing.ratio < 1


def test_it_runs_where_torch_and_paretune_cannot_be_imported(tmp_path: Path) -> None:
    path = laid_out(tmp_path / "site")
    agent = Agent(tmp_path / "agent", module="paretune_agent.agent.main")
    root = ROOT.parent.resolve()
    others = [p for p in agent.path if Path(p).resolve() not in (root, ROOT)]
    agent.path = [str(path), *others]
    code = "import paretune_agent.agent.server, paretune_agent.agent.child, sys; import torch"
    refused = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert "torch is not on a board" in refused.stderr, refused.stderr
    with agent:
        check(agent, tmp_path)


def test_it_has_the_same_version_and_the_same_files() -> None:
    """One stopwatch: what the wheel takes is paretune's own file, there is no copy to differ."""
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert PROJECT["project"]["version"] == root["project"]["version"]
    assert PROJECT["project"]["license"] == root["project"]["license"]
    names = {d.partition(">")[0] for d in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "onnxruntime"}
    stopwatch = {"timing", "timing_result", "speed_states", "cpu"}
    shared = selected()["paretune_agent.targets"]
    assert stopwatch <= set(shared)
    for module, source in shared.items():
        path = (ROOT / "agent" / source).resolve()
        assert path == (ROOT / "targets" / f"{module}.py").resolve() and path.is_file()
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == set(selected())


def wheel(folder: Path) -> Path:
    source = folder / "source"  # the build leaves folders behind
    ignore = shutil.ignore_patterns(".git", "__pycache__", "tests", "docs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignore)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(folder), str(source / "agent")),
        ],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("paretune_agent-*.whl"))


@pytest.mark.slow
def test_its_wheel_holds_those_files_byte_for_byte(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    with zipfile.ZipFile(wheel(tmp_path)) as made:
        held = {n: made.read(n) for n in made.namelist() if n.endswith(".py")}
    expected = {
        f"{package.replace('.', '/')}/{module}.py": (ROOT / "agent" / source).read_bytes()
        for package, files in selected().items()
        for module, source in files.items()
    }
    assert {n: hashlib.sha256(d).digest() for n, d in held.items()} == {
        n: hashlib.sha256(d).digest() for n, d in expected.items()
    }


@pytest.mark.slow
def test_it_runs_in_an_environment_of_numpy_and_onnxruntime(tmp_path: Path) -> None:
    """A new environment with the wheel and its two dependencies; skipped where there is none."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    if not Path(uv).exists():
        pytest.skip("uv is not installed")
    built = wheel(tmp_path)
    home = tmp_path / "venv"
    python = str(home / "bin" / "python")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(home)], check=True)
    done = subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, str(built)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"its dependencies cannot be installed here: {done.stderr[-200:]}")
    listed = subprocess.run(
        [uv, "pip", "list", "--python", python, "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.lower()
    assert "torch" not in listed and "paretune-agent==" in listed
    agent = Agent(tmp_path / "agent", module="paretune_agent.agent.main")
    agent.python, agent.path = python, []
    with agent:
        check(agent, tmp_path)
