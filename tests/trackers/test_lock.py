import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

from paretune.errors import InputError
from paretune.trackers.lock import FileLock
from paretune.trackers.study import Study

pytestmark = pytest.mark.usefixtures("without_optuna")


@pytest.fixture
def holder(tmp_path, recorded):
    """Another process that drives the study in ``tmp_path / "s"``."""
    recorded.new_study(tmp_path / "s", trials=1).close()
    process = subprocess.Popen(
        [sys.executable, recorded.__file__, "hold", str(tmp_path / "s")],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_driver_is_refused_at_once_and_told_who_holds_it(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(InputError, match=f"another search holds it: process {holder.pid} on "):
        Study.open(tmp_path / "s", write=True)
    assert time.monotonic() - started < 1.0
    with Study.open(tmp_path / "s") as reader:  # looking is always possible
        assert len(reader.rows()) == 1 and reader.driven()


def test_a_killed_driver_leaves_no_lock(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Study.open(tmp_path / "s") as reader:
        assert not reader.driven()
    started = time.monotonic()
    Study.open(tmp_path / "s", write=True).close()
    assert time.monotonic() - started < 10


def test_a_second_driver_in_the_same_process_is_refused(tmp_path, recorded):
    study = recorded.new_study(tmp_path / "s")
    with pytest.raises(InputError, match=f"process {os.getpid()} on "):
        Study.open(tmp_path / "s", write=True)
    study.close()
    Study.open(tmp_path / "s", write=True).close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    lock = FileLock.take(tmp_path / "l", "test")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0)
    try:
        lock.release()
        FileLock.take(tmp_path / "l", "test", wait_seconds=2).release()
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_lock_that_was_let_go_is_forgotten(tmp_path):
    lock = FileLock.take(tmp_path / "l", "test")
    gone = weakref.ref(lock)
    lock.release()
    del lock
    gc.collect()
    assert gone() is None


def test_one_who_looks_does_not_keep_a_driver_out(tmp_path):
    path, stop = tmp_path / "l", threading.Event()
    FileLock.take(path, "test").release()

    def look():
        while not stop.wait(0.001):
            FileLock.held(path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            FileLock.take(path, "test").release()
    finally:
        stop.set()
        for looker in lookers:
            looker.join()


def test_it_waits_as_long_as_it_is_told(tmp_path):
    with FileLock.take(tmp_path / "l", "test"):
        started = time.monotonic()
        with pytest.raises(InputError):
            FileLock.take(tmp_path / "l", "test", wait_seconds=0.3)
        assert 0.3 <= time.monotonic() - started < 2
        assert FileLock.held(tmp_path / "l")
    assert not FileLock.held(tmp_path / "l")
