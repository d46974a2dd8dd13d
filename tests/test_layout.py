"""The package is what pyproject.toml says: every folder listed, one copy of each module."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import paretune

ROOT = Path(__file__).parent.parent
ROOMS = (
    "tasks",
    "spaces",
    "targets",
    "agent",
    "operators",
    "objectives",
    "trackers",
    "deploy",
    "search",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_code_folder_is_packaged() -> None:
    found = {f"paretune.{p.parent.name}" for p in ROOT.glob("*/__init__.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"paretune"}
    assert found == {f"paretune.{room}" for room in ROOMS}


def test_the_root_holds_only_its_three_modules() -> None:
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "cli.py", "errors.py"}


def test_public_names_are_sorted_complete_and_load() -> None:
    assert paretune.__all__ == sorted(paretune.__all__)
    assert set(paretune.__all__) == set(paretune._HOME)
    for name in paretune.__all__:
        assert getattr(paretune, name).__name__ == name


def test_the_version_is_the_projects() -> None:
    assert paretune.__version__ == PROJECT["project"]["version"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, paretune, paretune.cli; "
        "print([m for m in ('torch', 'mlflow', 'optuna', 'ray', 'onnx', 'pandas', 'plotly') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_code_files_are_short() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for room in (*ROOMS, ".")
        for p in (ROOT / room).glob("*.py")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert long == {}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_answers(room: str) -> None:
    module = importlib.import_module(f"paretune.{room}")
    assert module.__doc__ and len(module.__doc__.strip().splitlines()) == 1
