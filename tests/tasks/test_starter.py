"""``paretune init`` and the schema: what is found out about a network and its images is right."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from paretune.errors import InputError
from paretune.search.job_schema import editor_schema
from paretune.search.starter_file import start_job
from paretune.tasks.job import load_job
from paretune.tasks.load import load_task
from paretune.tasks.model import build_network
from paretune.tasks.survey import survey_images

NET = """
import torch
from torch import nn

class Net(nn.Module):
    '''Tells dark from bright pictures, if pixels are minus 0.5, over 0.5.'''
    def __init__(self, classes=2, side=0):
        super().__init__()
        self.conv = nn.Conv2d({channels}, 2, 1)
        self.flat = nn.Linear(2 * side * side, classes) if side else None
        self.head = nn.Linear(2, classes)
        with torch.no_grad():
            self.conv.weight.fill_(1.0); self.conv.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]])[:classes])
            self.head.bias.zero_()
    def forward(self, x):
        assert x.shape[-1] != 32 or self.flat is None
        x = self.conv(x)
        return self.flat(x.flatten(1)) if self.flat else self.head(x.mean((2, 3)))
"""


def pictures(folder: Path, count: int, size: tuple[int, int] = (16, 16), seed: int = 0) -> None:
    """Two classes: pixels a little below and above the middle, where ImageNet's mean is not."""
    draw = np.random.default_rng(seed)
    for name, low in (("dark", 118), ("light", 130)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(low, low + 9, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET.format(channels=3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def start(**options: object) -> dict[str, object]:
    given = {"model": "net.py:Net", "data": "photos", "weights": None, "target": "onnxruntime-cpu"}
    start_job(**{**given, "out": Path("job.yaml"), "model_args": {}, **options})
    return yaml.safe_load(Path("job.yaml").read_text())


def test_a_job_for_train_and_val_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(folder / "photos" / "train", 12)
    pictures(folder / "photos" / "val", 8, seed=1)
    job = start()
    data = job["task"]["data"]
    assert (data["train"], data["evaluate"]) == ("photos/train", "photos/val")
    assert (data["search"], data["size"]) == (8, 16)
    assert data["mean"] == [0.5] * 3 and data["std"] == [0.5] * 3
    said = capsys.readouterr().out
    assert "no --weights: the network is as net.py:Net makes it" in said
    assert "100 % right" in said and "24 images + 16 to evaluate, 2 classes" in said
    text = (folder / "job.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=./.paretune/job.schema.json\n")
    schema = json.loads((folder / ".paretune" / "job.schema.json").read_text())
    jsonschema.validate(job, schema)
    assert load_task("job.yaml").description["classes"] == ["dark", "light"]
    with pytest.raises(InputError, match="is there already"):
        start()
    start(force=True)


def test_one_folder_is_divided(folder: Path) -> None:
    pictures(folder / "photos", 15)
    data = start()["task"]["data"]
    assert data["train"] == "photos" and data["evaluate"] == 6 and data["search"] == 3
    task = load_task("job.yaml")
    assert (len(task.train), len(task.search), len(task.evaluate)) == (24, 3, 3)
    parts = [set(s.digests()) for s in (task.train, task.search, task.evaluate)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert np.bincount(task.train.labels).tolist() == [12, 12]


def test_the_input_size_is_one_that_the_network_runs_on(folder: Path) -> None:
    pictures(folder / "photos", 6, (50, 40))
    assert start(model_args={"side": 0})["task"]["data"]["size"] == 32
    assert start(model_args={"side": 96}, force=True)["task"]["data"]["size"] == 96
    with pytest.raises(InputError, match="runs on no square input"):
        start(model_args={"side": 7}, force=True)


def test_grey_networks_and_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "net.py").write_text(NET.format(channels=1))
    pictures(folder / "photos", 6)
    network = build_network("net.py:Net", {}, "--model", folder)
    torch.save(network.state_dict(), folder / "net.pt")
    job = start(weights="net.pt")
    assert "no --weights" not in capsys.readouterr().out
    assert job["task"]["data"]["channels"] == 1 and job["task"]["weights"] == "net.pt"
    assert len(job["task"]["data"]["mean"]) == 1


@pytest.mark.parametrize(
    "options, word",
    [
        ({"model": "net.py:Nett"}, "--model: 'net.py' has no 'Nett'; did you mean 'Net'"),
        ({"model_args": {"clases": 2}}, "unexpected keyword"),
        ({"data": "nowhere"}, "--data: .*nowhere' does not exist"),
        ({"weights": "net.pt"}, "--weights: no such file"),
        ({"target": "onnxruntime-gpu"}, "did you mean 'onnxruntime-cpu'"),
    ],
)
def test_what_is_wrong_names_the_option(folder: Path, options: dict, word: str) -> None:
    pictures(folder / "photos", 3)
    with pytest.raises(InputError, match=word):
        start(**options)
    assert not (folder / "job.yaml").exists()


def test_a_survey_says_what_is_missing(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 2)
    assert survey_images(tmp_path / "a").common_size == 16
    (tmp_path / "b" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="no 'train' beside it"):
        survey_images(tmp_path / "b")
    (tmp_path / "c" / "only").mkdir(parents=True)
    with pytest.raises(InputError, match="one class folder only"):
        survey_images(tmp_path / "c")
    (tmp_path / "a" / "dark" / "0.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="cannot be read"):
        survey_images(tmp_path / "a")


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_fit_the_schema(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), editor_schema())


def test_the_schema_is_sound_and_explains_every_key() -> None:
    schema = editor_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, part in {"the file": schema, **schema["$defs"]}.items():
        assert part["description"], name
        for key, entry in part["properties"].items():
            assert entry.get("description"), f"{name}: {key} is not explained in its docstring"


WRONG = [
    ("search", {"trails": 3}),
    ("search", {"sampler": "nsga"}),
    ("search", {"trials": 0}),
    ("space", {"bits": [0]}),
    ("objectives", [3]),
    ("serch", {}),
    ("target", {"format": "qdp"}),
]


@pytest.mark.parametrize("key, value", WRONG)
def test_the_schema_refuses_what_the_loader_refuses(key: str, value: object) -> None:
    job = {"name": "a", "task": {"model": "n.py:m", "data": {"kind": "digits"}}}
    jsonschema.validate(job, editor_schema())
    load_job(job)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {key: value}, editor_schema())
    if key != "search" or "sampler" not in value:  # samplers are looked up later
        with pytest.raises(InputError):
            load_job(job | {key: value})
