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
    if left and terminalreporter.config.option.markexpr == "not slow":
        terminalreporter.write_line(f"left out: {left} slow tests; run them with: pytest -m slow")


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished real search on scikit-learn's digits, 8 trials, logged to a SQLite MLflow store.

    The job file lies beside it (``job.yaml``); tests that change the folder copy it first.
    """
    from paretune.search.quickstart import JOB, train
    from paretune.search.run import Search

    folder = tmp_path_factory.mktemp("digits")
    job, weights = folder / "job.yaml", folder / "digits.safetensors"
    text = JOB.format(name="job.yaml", trials=8, workers=1)
    text += "target: {options: {onnxruntime-cpu: {seconds: 0.5}}}\n"  # no test asks how fast it is
    job.write_text(text.replace("  weights: digits.safetensors\n", ""), encoding="utf-8")
    train(job, weights)
    job.write_text(text, encoding="utf-8")
    Search(job, folder / "study").run(display="quiet").close()
    return folder / "study"
