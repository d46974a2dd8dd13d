"""The KubeRay example is a RayJob by KubeRay's own schema, and runs what this paretune offers."""

import json
import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "kuberay" / "search.yaml"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))


def strict(schema: Any) -> Any:
    """The schema, refusing unknown keys as ``kubectl apply --validate=strict`` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        free = schema.get("x-kubernetes-preserve-unknown-fields")
        out.setdefault("additionalProperties", bool(free))
    return out


def test_it_is_a_rayjob_by_kuberays_schema(example):
    """PARETUNE_KUBERAY_CRD: a copy of KubeRay's ``ray.io_rayjobs.yaml`` (1.4 MB)."""
    path = os.environ.get("PARETUNE_KUBERAY_CRD")
    if not path:
        pytest.skip("PARETUNE_KUBERAY_CRD names no ray.io_rayjobs.yaml of KubeRay")
    jsonschema = pytest.importorskip("jsonschema")
    crd = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.CSafeLoader)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(example, schema)
    for change in ("entrypont", "rayClusterSpek"):  # the schema is one that refuses
        with pytest.raises(jsonschema.ValidationError, match=change):
            jsonschema.validate({**example, "spec": {**example["spec"], change: "x"}}, schema)


def test_its_versions_and_commands_are_ours(example):
    spec = example["spec"]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert spec["rayClusterSpec"]["rayVersion"] == pins["ray"]
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
    assert spec["entrypoint"].startswith("paretune search ") and "--ray auto" in spec["entrypoint"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert "paretune" in scripts
    board = next(g for g in spec["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "board")
    assert json.loads(json.loads(board["rayStartParams"]["resources"])) == {"edge-board": 1}


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "tpu"])
def test_the_image_is_asked_for_what_constraints_pin(accelerator, tmp_path):
    """The recipe's own shell lines, with a pip that writes down what it is asked for."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    (install,) = [line for line in lines if line.startswith("RUN") and "ACCELERATOR" in line]
    pip, said = tmp_path / "pip", tmp_path / "said"
    pip.write_text(f'#!/bin/sh\necho "$@" >> {said}\ncat {tmp_path}/tmp/rest.txt >> {said} || :\n')
    pip.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    shutil.copy(ROOT / "constraints.txt", tmp_path / "tmp")
    done = subprocess.run(
        ["sh", "-c", install.removeprefix("RUN").replace("/tmp/", f"{tmp_path}/tmp/")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "ACCELERATOR": accelerator},
        **{"capture_output": True, "text": True},
    )
    if accelerator == "tpu":
        assert (done.returncode, done.stdout) == (1, "ACCELERATOR is cpu or cuda, not 'tpu'\n")
        return
    assert done.returncode == 0, done.stderr
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch, vision, ray = (
        next(pin for pin in pins if pin.startswith(f"{name}=="))
        for name in ("torch", "torchvision", "ray")
    )
    first, second = [line for line in said.read_text().splitlines() if line.startswith("install ")]
    assert torch in first and vision in first
    assert ("--index-url https://download.pytorch.org/whl/cpu" in first) == (accelerator == "cpu")
    assert second.endswith(f"ray[default,tune]=={ray.removeprefix('ray==')}")
    loose = torch.replace("==", ">=")  # the one from torch's own index has a suffix
    assert loose in said.read_text().splitlines() and "onnx==" in said.read_text()
    assert not list((tmp_path / "tmp").glob("*.txt"))


def test_the_image_pins_what_constraints_pin():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text()
    assert "constraints.txt" in text and "ARG ACCELERATOR=cpu" in text
    for line in text.splitlines():
        for word in line.split():
            if "==" in word and word[0].isalpha() and "$" not in word:
                assert word.rstrip(";") in pins.splitlines(), word
