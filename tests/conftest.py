"""Settings for every test: one thread, the data folder, two workers, and what tests share.

The default run uses two processes (pytest-xdist); a selection of tests, by folder, file, ``-k`` or
``-m``, runs in this one. ``-n 0`` runs everything in one process.
"""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

LEFT_OUT = pytest.StashKey[int]()
TURNS = pytest.StashKey[Path]()


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


@pytest.fixture(scope="session")
def digits_study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished real search on scikit-learn's digits, 8 trials, logged to a SQLite MLflow store.

    The job file lies beside it (``job.yaml``); tests that change the folder copy it first. Built
    once: a worker that needs it meanwhile waits.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "digits"
    folder.mkdir(exist_ok=True)
    with (folder.parent / "digits.lock").open("a") as built:
        fcntl.flock(built, fcntl.LOCK_EX)
        if os.fstat(built.fileno()).st_size == 0:
            build_digits_study(folder)
            built.write("built\n")
    return folder / "study"


def build_digits_study(folder: Path) -> None:
    from paretune.search.quickstart import JOB, train
    from paretune.search.run import Search

    job, weights = folder / "job.yaml", folder / "digits.safetensors"
    text = JOB.format(name="job.yaml", trials=8, workers=1)
    text += "target: {options: {onnxruntime-cpu: {seconds: 0.5}}}\n"  # no test asks how fast it is
    job.write_text(text.replace("  weights: digits.safetensors\n", ""), encoding="utf-8")
    train(job, weights)
    job.write_text(text, encoding="utf-8")
    Search(job, folder / "study").run(display="quiet").close()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for the default run, none for a selection: starting them costs ten seconds."""
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    chosen = chosen or bool(config.option.keyword) or config.option.markexpr != "not slow"
    return 0 if chosen else min(2, len(os.sched_getaffinity(0)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where turns are taken."""
    if TURNS not in node.config.stash:
        node.config.stash[TURNS] = Path(tempfile.mkdtemp(prefix="turns-"))
    node.workerinput["turns"] = str(node.config.stash[TURNS])


def pytest_unconfigure(config: pytest.Config) -> None:
    if TURNS in config.stash:
        shutil.rmtree(config.stash[TURNS])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """While a test marked ``alone`` runs, fixtures included, the other worker runs none.

    All hold the room, one alone or many together. Who waits for it waits at the door, so that
    nobody slips in before somebody who wants to be alone.
    """
    if not hasattr(item.config, "workerinput"):
        return (yield)
    turns = Path(item.config.workerinput["turns"])
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with (turns / "room").open("a") as room:
        with (turns / "door").open("a") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, kind)
        return (yield)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    config = items[0].config
    config.stash[LEFT_OUT] = config.stash.get(LEFT_OUT, 0) + len(items)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker leaves out the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    left = config.stash.get(LEFT_OUT, 0)
    if left:
        terminalreporter.write_line(f"left out: {left} slow tests; run them with: pytest -m slow")
