"""Killed at any instant, a study keeps what it acknowledged and goes on."""

import random
import signal
import sqlite3
import subprocess
import sys
import time

import optuna
import pytest

from paretune.trackers.artifact_store import intact
from paretune.trackers.study import Study


def start(recorded, mode, folder, notes, count):
    return subprocess.Popen(
        [sys.executable, recorded.__file__, mode, str(folder), str(notes), str(count)],
        cwd=folder.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def check(recorded, folder, notes):
    """No acknowledged trial is lost or changed, the file is whole, no artifact is cut."""
    acknowledged = [int(line) for line in notes.read_text().split()] if notes.exists() else []
    assert len(set(acknowledged)) == len(acknowledged), "a trial was run twice"
    if not (folder / "study.db").exists():
        assert not acknowledged
        return 0
    with sqlite3.connect(folder / "study.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with Study.open(folder) as study:
        rows = {row.number: row.evaluation for row in study.rows()}
        assert set(acknowledged) <= set(rows)
        for number, evaluation in rows.items():
            assert evaluation.values == recorded.evaluation(number).values
            assert evaluation.artifact is None or intact(study.artifact_path(evaluation.artifact))
        assert len(study.in_flight()) <= 1
    return len(rows)


def copied(folder):
    study = optuna.load_study(study_name="made-up", storage=f"sqlite:///{folder}/study.db")
    return sorted(trial.user_attrs["paretune.number"] for trial in study.trials)


def killed_again_and_again(recorded, tmp_path, kills, seed):
    folder, notes = tmp_path / "s", tmp_path / "acknowledged"
    dice, count, done = random.Random(seed), 10_000, 0
    for _ in range(kills):
        writer = start(recorded, "write", folder, notes, count)
        until = time.monotonic() + 30
        before = notes.stat().st_size if notes.exists() else 0
        while time.monotonic() < until and writer.poll() is None:  # let it get going first
            if notes.exists() and notes.stat().st_size > before:
                break
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.6))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL, writer.stderr.read().decode()
        writer.stderr.close()
        grown = check(recorded, folder, notes)
        assert grown > done
        done = grown
    last = start(recorded, "write", folder, notes, done + 5)
    assert last.wait(60) == 0, last.stderr.read().decode()
    last.stderr.close()
    assert check(recorded, folder, notes) == done + 5
    assert copied(folder) == list(range(done + 5))
    with Study.open(folder) as study:
        assert study.in_flight() == []


@pytest.mark.slow
def test_twenty_kills(recorded, tmp_path):
    killed_again_and_again(recorded, tmp_path, kills=20, seed=2)


@pytest.mark.parametrize(
    "wait", [pytest.param(s, marks=pytest.mark.slow) for s in (0.6, 0.9, 1.2, 1.5, 1.8, 2.1)]
)
def test_a_kill_during_creation(recorded, tmp_path, wait):
    """At whatever instant, the folder can be used again."""
    folder, notes = tmp_path / "s", tmp_path / "acknowledged"
    writer = start(recorded, "write", folder, notes, 10_000)
    time.sleep(wait)
    writer.kill()
    writer.communicate()
    last = start(recorded, "write", folder, notes, 1)
    assert last.wait(60) == 0, last.stderr.read().decode()
    last.stderr.close()
    check(recorded, folder, notes)


def test_a_kill_before_the_copy_to_optuna_is_healed(recorded, tmp_path):
    folder, notes = tmp_path / "s", tmp_path / "acknowledged"
    writer = start(recorded, "write-then-die", folder, notes, 10)
    assert writer.wait(60) == -signal.SIGKILL
    writer.stderr.close()
    with Study.open(folder) as study:
        assert [r.number for r in study.rows()] == [0, 1, 2]
    with pytest.raises(Exception, match=r".*"):  # nothing is in Optuna's tables yet
        copied(folder)
    Study.open(folder, write=True).close()
    assert copied(folder) == [0, 1, 2]
    Study.open(folder, write=True).close()
    assert copied(folder) == [0, 1, 2]
