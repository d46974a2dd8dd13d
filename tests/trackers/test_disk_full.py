"""The disk fills up in the middle of a search."""

import os
import resource
import shutil
import subprocess
import sys

import pytest

from paretune.errors import EnvironmentFault
from paretune.trackers.study import Study


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [str(mount), "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not mount or not umount or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run([umount, "-l", str(folder)], check=True)


def test_a_full_disk_pauses_the_study_and_space_revives_it(small_disk, recorded):
    folder = small_disk / "s"
    study = recorded.new_study(folder)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1 << 20))
    acknowledged = []
    with pytest.raises(EnvironmentFault) as caught:
        for number in range(100_000):
            recorded.run_trial(study, number)
            acknowledged.append(number)
    text = str(caught.value)
    assert str(folder) in text and "disk is full" in text and "bytes free" in text
    assert "max length" not in text and "\n" not in text
    assert len(acknowledged) > 20
    ballast.unlink()
    last = len(acknowledged)
    study.begin(recorded.ask(last), "w")  # the same study goes on
    study.finish(last, recorded.evaluation(last))
    study.close()
    with Study.open(folder, write=True) as again:
        rows = again.rows()
        assert [r.number for r in rows] == [*acknowledged, last]
        assert all(r.evaluation.values == recorded.evaluation(r.number).values for r in rows)


def test_a_file_size_limit_is_the_same(tmp_path, recorded):
    """The kernel refuses to let a file grow: needs no privilege to try."""
    code = f"""
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("recorded", {recorded.__file__!r})
recorded = importlib.util.module_from_spec(spec); spec.loader.exec_module(recorded)
from paretune.errors import EnvironmentFault
study = recorded.new_study({str(tmp_path / "s")!r}, trials=5)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, {resource.RLIM_INFINITY}))
done = 5
try:
    while done < 5000:
        recorded.run_trial(study, done)
        done += 1
except EnvironmentFault as fault:
    print(fault)
print(done)
resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
study.begin(recorded.ask(done), "w")
study.finish(done, recorded.evaluation(done))
study.close()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    fault, done = run.stdout.splitlines()
    assert "storage failed" in fault and "no acknowledged trial is lost" in fault
    with Study.open(tmp_path / "s") as study:
        assert [r.number for r in study.rows()] == list(range(int(done) + 1))


@pytest.mark.parametrize(
    "lock, message",
    [
        (True, "study.db: storage failed (attempt to write a readonly database"),
        (False, "study.lock: cannot be opened for writing (Permission denied); make the folder"),
    ],
)
def test_an_unwritable_folder_is_named(tmp_path, recorded, lock, message):
    """In a process that may not write where the mode forbids it; root's own is made such a one. A
    lock file that is there already can be opened: then SQLite is the first to be refused."""
    recorded.new_study(tmp_path / "s", trials=1).close()
    if not lock:
        (tmp_path / "s" / "study.lock").unlink()
    command = [sys.executable]
    if os.geteuid() == 0:
        drop = shutil.which("setpriv")
        if drop is None:
            pytest.skip("nothing is unwritable for root, and there is no setpriv to be less")
        command = [drop, "--bounding-set=-dac_override,-dac_read_search", *command]
    code = f"""
from pathlib import Path
from paretune.errors import EnvironmentFault
from paretune.trackers.study import Study
folder = Path({str(tmp_path / "s")!r})
try:
    (folder / "probe").touch()
    print("writable")
except PermissionError:
    print("unwritable")
try:
    Study.open(folder, write=True)
except EnvironmentFault as fault:
    print(fault)
with Study.open(folder) as study:
    print(len(study.rows()))
"""
    (tmp_path / "s").chmod(0o500)
    try:
        run = subprocess.run([*command, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    finally:
        (tmp_path / "s").chmod(0o700)
    assert run.returncode == 0, run.stderr
    probe, fault, rows = run.stdout.splitlines()
    assert (probe, rows) == ("unwritable", "1")
    assert fault.startswith(f"{tmp_path / 's'}/{message}") and "writable" in fault
