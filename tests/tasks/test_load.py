"""From a job to a task, whole: what comes out, and what is refused before any trial."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paretune.errors import InputError
from paretune.tasks.load import load_task
from paretune.tasks.score import CallableScore, Fidelity, Top1
from paretune.tasks.task import Split, Task
from paretune.tasks.vision import plain_cnn

NET = {"convs": 4, "channels": 1, "size": 8, "width": 4}
JOB = {
    "name": "digits",
    "task": {
        "model": "paretune.tasks.vision:plain_cnn",
        "model_args": NET,
        "data": {"kind": "digits"},
    },
}

CODE = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset

def part(seed, low=0, high=3, shape=(5,)):
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(12, *shape, generator=g), torch.arange(12) % (high - low) + low
    )

def good(**k): return part(1, **k), part(2, **k), part(3, **k)
def leaky(): return part(1), part(2), part(1)
def uneven(): return part(1), part(2), part(3, shape=(6,))
def unlabelled(): return [[x for x, _ in part(s)] for s in (1, 2, 3)]
def mislabelled(): return part(1, high=4), part(2), part(3)
def relabelled(): return part(1, low=1, high=3), part(2), part(3)
def linear(classes=3): return nn.Linear(5, classes)
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
    def forward(self, x): return self.linear(x), x
class Sum(Pair):
    def forward(self, x): return self.linear(x).sum()
class Nan(Pair):
    def forward(self, x): return self.linear(x) * float("nan")
def score(predict, batches): return 0.5
def loss(outputs, targets): return torch.tensor(7.0)
def bad_loss(outputs, targets): return outputs @ targets
"""


def with_task(**changes: object) -> dict:
    job = copy.deepcopy(JOB)
    job["task"] |= changes
    return job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path


def custom(folder: Path, model: str = "linear", data: str = "good", **changes: object) -> dict:
    task = {"model": f"code.py:{model}", "data": {"kind": f"code.py:{data}"}} | changes
    if isinstance(task["data"], dict) and "args" in changes:
        task["data"]["args"] = task.pop("args")
    return {"name": "custom", "folder": str(folder), "task": task}


def refusal(job: object) -> str:
    with pytest.raises(InputError) as caught:
        load_task(job)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_of_digits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(plain_cnn(**NET).state_dict(), tmp_path / "w.safetensors")
    job = with_task(weights="w.safetensors") | {"folder": str(tmp_path)}
    task = load_task(job)
    assert isinstance(task, Task) and isinstance(task.score, Top1)
    assert task.example.shape == (1, 1, 8, 8) and task.example.dtype == torch.float32
    assert not task.network.training
    assert [s.name for s in (task.train, task.search, task.evaluate)] == [
        "train",
        "search",
        "evaluate",
    ]
    split: Split = task.search
    result = task.score.measure(task.network_predict, split)
    assert 0 <= result.values["accuracy"] <= 1 and result.count == len(split)
    calibration = task.calibration(100, 64)
    assert [len(c) for c in calibration] == [64, 36]
    assert task.description["params"] == sum(p.numel() for p in task.network.parameters())
    assert task.description["classes"] == [str(i) for i in range(10)]
    # the same again is the same; other weights are another task
    assert load_task(job).fingerprint == task.fingerprint
    torch.manual_seed(1)
    save_file(plain_cnn(**NET).state_dict(), tmp_path / "w.safetensors")
    assert load_task(job).fingerprint != task.fingerprint
    assert len(task.fingerprint) == 64


def test_other_data_are_another_task(folder: Path) -> None:
    (folder / "fixed.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(3)\n    return torch.nn.Linear(5, 3)\n"
    )
    job = custom(folder)
    job["task"]["model"] = "fixed.py:net"
    first = load_task(job).fingerprint
    assert load_task(job).fingerprint == first
    job["task"]["data"]["train_count"] = 9
    assert load_task(job).fingerprint != first
    job["task"]["data"] = {"kind": "code.py:relabelled"}  # the same examples
    assert load_task(job).fingerprint != first


def test_from_a_file_with_the_line_at_fault(folder: Path) -> None:
    file = folder / "job.yaml"
    file.write_text(
        "name: custom\ntask:\n  model: code.py:linear\n  model_args: {classes: 2}\n"
        "  data: {kind: 'code.py:good'}\n"
    )
    told = refusal(file)
    assert told.startswith(f"{file}:5: task.data: labels of 'train' run from 0 to 2, the network")
    file.write_text(file.read_text().replace("classes: 2", "classes: 3"))
    assert load_task(file).name == "custom"
    assert load_task(str(file)).score.name == "accuracy"


def test_scores_by_name(folder: Path) -> None:
    fidelity = load_task(custom(folder, data="unlabelled", score="fidelity"))
    assert isinstance(fidelity.score, Fidelity) and not fidelity.train.labelled
    own = load_task(custom(folder, score="code.py:score"))
    assert isinstance(own.score, CallableScore)
    assert own.score.measure(own.network_predict, own.search).values == {"accuracy": 0.5}
    loss = load_task(custom(folder, loss="code.py:loss"))
    assert loss.score.measure(loss.network_predict, loss.search).values["loss"] == 7.0
    wrong = load_task(custom(folder, loss="code.py:bad_loss"))
    with pytest.raises(InputError, match="^task.loss: it raised RuntimeError: .*; correct it$"):
        wrong.score.measure(wrong.network_predict, wrong.search)
    assert "unknown score 'acuracy'" in refusal(custom(folder, score="acuracy"))
    assert "use score: fidelity" in refusal(custom(folder, data="unlabelled"))


def test_what_does_not_fit_is_told(folder: Path) -> None:
    wide = with_task(model_args=NET | {"channels": 3})
    assert "cannot run on inputs of shape [2, 1, 8, 8]" in refusal(wide)
    assert "the network gives tuple; it must return one tensor" in refusal(custom(folder, "Pair"))
    assert "the network gives shape []" in refusal(custom(folder, "Sum"))
    assert "outputs hold NaN" in refusal(custom(folder, "Nan"))
    assert "12 of 'evaluate' are also in 'train'" in refusal(custom(folder, data="leaky"))
    assert "inputs of 'evaluate' are [6], of 'train' [5]" in refusal(custom(folder, data="uneven"))
    assert "labels of 'train' run from -1 to 1" in refusal(
        custom(folder, args={"low": -1, "high": 2})
    )
    assert "labels of 'train' run from 0 to 3, the network has 3 outputs" in refusal(
        custom(folder, data="mislabelled")
    )
    assert "labels of 'train' run from 0 to 9, the network has 5 outputs" in refusal(
        with_task(model_args=NET | {"classes": 5})
    )
    one = with_task(model_args=NET | {"classes": 1})
    assert "accuracy needs outputs (n, classes)" in refusal(one)
    assert "no such file" in refusal(with_task(weights="absent.safetensors"))
    assert "has no 'plain_cn'; did you mean 'plain_cnn'?" in refusal(
        with_task(model="paretune.tasks.vision:plain_cn")
    )


def test_what_the_training_after_the_search_needs_is_looked_up_at_once(folder: Path) -> None:
    job = custom(folder)
    for recover, message in (
        ({"augment": "code.py:flp"}, "recover.augment: 'code.py' has no 'flp'"),
        ({"augment": "absent.py:flip"}, "recover.augment: no such file"),
        ({"features": ["wieght"]}, "recover.features[0]: no module named 'wieght'"),
    ):
        assert message.replace("code.py", f"{folder}/code.py") in refusal(
            job | {"recover": recover}
        )
    assert load_task(job | {"recover": {"method": "none", "features": ["wieght"]}})


def test_loading_digits_is_quick() -> None:
    load_task(JOB)
    start = time.perf_counter()
    load_task(JOB)
    assert time.perf_counter() - start < 5
