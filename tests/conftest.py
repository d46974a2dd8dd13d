"""Settings for every test: one thread, the data folder, and modules that tests share."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with CIFAR-10 and the pretrained networks; skips where there is none."""
    folder = os.environ.get("PARETUNE_DATA")
    if not folder or not (Path(folder) / "val").is_dir():
        pytest.skip("PARETUNE_DATA names no folder with CIFAR-10 (train/, val/, *.safetensors)")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    left = len(terminalreporter.stats.get("deselected", []))
    if left:
        terminalreporter.write_line(f"left out: {left} slow tests; run them with: pytest -m slow")
