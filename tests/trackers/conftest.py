"""A made-up search for the trackers' tests."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("recorded.py")


def _load():
    spec = importlib.util.spec_from_file_location("recorded", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recorded():
    """The module ``recorded.py``; ``recorded.__file__`` can be run as a process."""
    return _load()


@pytest.fixture
def clean_environment(monkeypatch):
    """No address of the person's own MLflow."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def without_optuna(monkeypatch):
    """Leave out the copy to Optuna's tables, which takes seconds to make."""
    monkeypatch.setattr("paretune.trackers.optuna_tables.OptunaTables.add", lambda *_: 0)
