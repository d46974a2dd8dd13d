"""The command line as a user meets it: what goes wrong is one line and the right exit code."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paretune import cli

MODEL = """
import torch
from torch import nn

def small(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 10)
    def forward(self, x):
        raise RuntimeError("no kernel for this input")

def shuffled():
    import torchvision
    return torchvision.models.shufflenet_v2_x0_5(num_classes=10)

def empty():
    return {"train": [], "search": [], "evaluate": []}

class Labels(torch.utils.data.Dataset):
    def __init__(self, start): self.start = start
    def __len__(self): return 64
    def __getitem__(self, i): return torch.full((1, 8, 8), float(self.start + i)), 10 + i % 3

def wrong_labels():
    return {"train": Labels(0), "search": Labels(100), "evaluate": Labels(200)}
"""
JOB = """\
name: case
task:
  model: model.py:small
  data: {kind: digits}
space: {prune: true}
objectives: [accuracy, size_bytes]
search: {trials: 3, sampler: random}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["paretune", *arguments])
        monkeypatch.setattr(cli, "_state", {"debug": False})
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def truncated(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"\x10\x00")


def wrong_shape(folder: Path) -> None:
    shapes = {"0.weight": (4, 1, 3, 3), "0.bias": (8,), "2.weight": (8, 8, 3, 3), "2.bias": (8,)}
    shapes |= {"6.weight": (10, 8), "6.bias": (10,)}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "weights.safetensors")


def pickled(folder: Path) -> None:
    class Canary:
        def __reduce__(self):
            return print, ("this must never be printed",)

    with open(folder / "weights.pt", "wb") as file:
        pickle.dump({"0.weight": Canary()}, file)


def nothing(_: Path) -> None: ...


CASES = {
    "unknown key": (nothing, "trials: 3", "trails: 3", "did you mean 'trials'"),
    "duplicate key": (nothing, "trials: 3", "trials: 3, trials: 4", "duplicate key 'trials'"),
    "not a number": (nothing, "trials: 3", 'trials: "3"', "search.trials"),
    "negative": (nothing, "trials: 3", "trials: -3", "search.trials"),
    "unknown sampler": (nothing, "sampler: random", "sampler: nsga", "did you mean 'nsga"),
    "unknown target": (
        nothing,
        "size_bytes]",
        "{latency_ms: {target: onnxruntime-cpi}}]",
        "did you mean 'onnxruntime-cpu'",
    ),
    "unknown objective": (nothing, "size_bytes]", "sizes]", "did you mean 'size"),
    "impossible constraint": (
        nothing,
        "objectives",
        'constraints: ["accuracy >= 1.2"]\nobjectives',
        "constraints",
    ),
    "contradiction": (
        nothing,
        "objectives",
        'constraints: ["accuracy > 0.9 and accuracy < 0.8"]\nobjectives',
        "constraints",
    ),
    "bad syntax": (nothing, "objectives", 'constraints: ["accuracy >"]\nobjectives', "constraints"),
    "missing weights": (
        nothing,
        "  data:",
        "  weights: nowhere.safetensors\n  data:",
        "nowhere.safetensors",
    ),
    "truncated weights": (
        truncated,
        "  data:",
        "  weights: weights.safetensors\n  data:",
        "weights.safetensors",
    ),
    "wrong shapes": (
        wrong_shape,
        "  data:",
        "  weights: weights.safetensors\n  data:",
        "[4, 1, 3, 3]",
    ),
    "pickled code": (pickled, "  data:", "  weights: weights.pt\n  data:", "safetensors"),
    "missing data": (
        nothing,
        "{kind: digits}",
        "{kind: imagefolder, train: nowhere, evaluate: nowhere, size: 8}",
        "nowhere",
    ),
    "empty data": (nothing, "{kind: digits}", "{kind: 'model.py:empty'}", "holds no examples"),
    "labels out of range": (nothing, "{kind: digits}", "{kind: 'model.py:wrong_labels'}", "12"),
    "no such callable": (nothing, "model.py:small", "model.py:smal", "did you mean 'small'"),
    "forward fails": (nothing, "model.py:small", "model.py:Branching", "no kernel for this input"),
    "trace fails": (nothing, "model.py:small", "model.py:shuffled", "task.model"),
    "wrong bits": (nothing, "{prune: true}", "{bits: [7, 32]}", "7 bits are not offered"),
    "a ratio of 95": (nothing, "{prune: true}", "{rank: {ratios: [95.0]}}", "0.95"),
    "unknown frozen layer": (nothing, "{prune: true}", '{freeze: ["7"]}', "7"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line_before_any_trial(
    case: str, folder: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    prepare, old, new, word = CASES[case]
    prepare(folder)
    assert old in JOB
    (folder / "job.yaml").write_text(JOB.replace(old, new, 1))
    code, out, err = call("search", "job.yaml", "--out", "study")
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("paretune: "), err
    assert word in lines[0]
    assert "Traceback" not in err + out and "must never be printed" not in out
    assert "weights_only=False" not in err
    assert not (folder / "study" / "study.db").exists()


def test_missing_job_and_missing_study(call: Callable[..., tuple[int, str, str]]) -> None:
    assert call("search", "nowhere.yaml")[0] == 2
    code, _, err = call("front", "nowhere")
    assert code == 2 and "nowhere" in err and err.count("\n") == 1
    assert call("sync", "nowhere")[0] == 2
    assert call("pull", "nowhere", "--best", "accuracy", "--to", "out")[0] == 2
    code, _, err = call("setup", "openvino-cpu")
    assert code == 2 and "needs no environment of its own; only 'litert' does" in err


def test_options_are_checked_by_name(call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call("search", "job.yaml", "--sampler", "nsga9", "--out", "study")
    assert code == 2 and "paretune: --sampler: " in err and "did you mean 'nsga" in err
    code, _, err = call("search", "job.yaml", "--storage", "mysql://here/x", "--out", "study")
    assert code == 2 and "paretune: --storage: " in err
    code, _, err = call("search", "job.yaml", "--trials", "0")
    assert code == 2 and "'--trials'" in err
    code, _, err = call("pull", "x", "--to", "y", "--alias", "champion")
    assert code == 2 and "--register" in err


def test_debug_shows_where_it_came_from(call: Callable[..., tuple[int, str, str]]) -> None:
    _, _, err = call("--debug", "front", "nowhere")
    assert "Traceback" in err


def test_discover_prints_the_space(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("discover", "job.yaml")
    assert code == 0 and "combinations" in out and "classifier" not in out.lower()


def test_front_in_every_format(
    digits_study: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    study = str(digits_study)
    code, table, _ = call("front", study)
    assert code == 0 and "base" in table
    code, csv, _ = call("front", study, "--format", "csv")
    rows = csv.strip().splitlines()
    assert rows[0].startswith("number,") and len(rows) >= 2
    code, text, _ = call("front", study, "--format", "json", "--where", "size_ratio < 0.9")
    points = json.loads(text)["points"]
    assert points and all(p["values"]["size_ratio"] < 0.9 for p in points)
    code, _, _ = call("front", study, "--format", "html", "--out", str(tmp_path / "page.html"))
    assert code == 0 and "plotly" in (tmp_path / "page.html").read_text().lower()
    code, _, err = call("front", study, "--where", "size_ratio < 0.0001")
    assert code == 4 and "nearest" in err.lower() and "size_ratio" in err, err


def test_help_and_version_as_a_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paretune.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    for command in ("quickstart", "discover", "search", "front", "pull", "apply", "sync", "ui"):
        assert command in done.stdout


def test_pull_apply_and_sync(
    digits_study: Path, call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    study, job = str(digits_study), str(digits_study.parent / "job.yaml")
    code, out, err = call("pull", study, "--best", "size_bytes", "--to", str(tmp_path / "out"))
    assert code == 0, err
    assert "Delivered" in out and "verified" in out
    plan = str(tmp_path / "out" / "plan.json")
    weights = str(tmp_path / "small.safetensors")
    code, out, err = call("apply", plan, "--job", job, "--to", weights)
    assert code == 0 and "parameters" in out, err
    code, _, err = call("apply", plan, "--job", job, "--to", "small.pt")
    assert code == 2 and ".safetensors" in err
    code, first, _ = call("sync", study)
    code_again, again, _ = call("sync", study)
    assert code == code_again == 0 and "0 runs created, 0 updated" in again, first + again
