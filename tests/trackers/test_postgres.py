"""A study in a real PostgreSQL server: the same rows, one driver, restarts, no secret anywhere."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import optuna
import pytest
from local_server import free_port
from postgres_server import PostgresServer

from paretune.errors import EnvironmentFault, InputError
from paretune.trackers.pgpass import password_for
from paretune.trackers.place import Place
from paretune.trackers.postgres import Server, schema_of
from paretune.trackers.study import BASELINE, Study


@pytest.fixture(scope="module")
def postgres():
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def job(postgres, recorded, monkeypatch, request):
    """A made-up job whose study, named after the test, lies in the server."""
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    tracker = {"storage": postgres.address}
    return {**recorded.JOB, "name": request.node.name, "tracker": tracker}


def new_study(folder, job, recorded, trials=0):
    study = Study.create(folder, job, name=job["name"], objectives=recorded.objectives())
    study.add(BASELINE, recorded.baseline())
    for number in range(trials):
        recorded.run_trial(study, number)
    return study


def same(study, recorded, count):
    rows = study.rows()
    assert [row.number for row in rows] == list(range(count))
    for row in rows:
        expected = recorded.evaluation(row.number, artifact=row.evaluation.artifact)
        assert row.evaluation == expected
    assert study.in_flight() == []


@pytest.mark.usefixtures("without_optuna")
def test_a_study_moves_to_another_folder(tmp_path, job, recorded, postgres):
    """What one machine wrote another goes on with; the first folder keeps showing all of it."""
    with new_study(tmp_path / "a", job, recorded, trials=8) as study:
        identity, front = study.id, {p.number for p in study.front()}
    assert not (tmp_path / "a" / "study.db").exists()
    place = Place.of_job(tmp_path / "b", job, job["name"])
    with Study.open(place, write=True) as study:
        assert study.id == identity and {p.number for p in study.front()} == front
        study.set_job(job)
        for number in range(8, 12):
            recorded.run_trial(study, number)
    for folder in ("a", "b"):
        with Study.open(tmp_path / folder) as study:
            same(study, recorded, 12)
    with pytest.raises(InputError, match="holds a study already"):
        new_study(tmp_path / "c", job, recorded)


def test_studies_do_not_see_each_other_and_optuna_sees_both(tmp_path, job, recorded, postgres):
    other = {**job, "name": "Größe"}
    with new_study(tmp_path / "a", job, recorded, 3), new_study(tmp_path / "b", other, recorded, 5):
        pass
    with Study.open(tmp_path / "a", write=True) as study:  # gone on with: the copy too
        recorded.run_trial(study, 3)
    for name, count in ((job["name"], 4), ("Größe", 5)):
        storage = Server(postgres.address, name).optuna_storage()
        seen = optuna.load_study(study_name=name, storage=storage)
        assert len(seen.trials) == count
        storage.engine.dispose()
    assert schema_of("Größe") != schema_of("gr_e") and len(schema_of("x" * 200)) < 63


@pytest.mark.usefixtures("without_optuna")
def test_a_second_driver_is_refused_and_told_who_holds_it(tmp_path, job, recorded):
    holder = f"process {os.getpid()} on {socket.gethostname()[:36]} since"
    with new_study(tmp_path / "a", job, recorded, 1):
        begun = time.monotonic()
        with pytest.raises(InputError, match=holder) as refused:
            Study.open(Place.of_job(tmp_path / "b", job, job["name"]), write=True)
        assert time.monotonic() - begun < 3 and refused.value.exit_code == 2
        with Study.open(tmp_path / "a") as reader:
            assert reader.driven() and len(reader.rows()) == 1
    with Study.open(tmp_path / "a") as reader:
        assert not reader.driven()


@pytest.mark.usefixtures("without_optuna")
def test_a_killed_driver_holds_nothing(tmp_path, job, recorded):
    new_study(tmp_path / "a", job, recorded, 1).close()
    process = subprocess.Popen(
        [sys.executable, recorded.__file__, "hold", str(tmp_path / "a")],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    elsewhere = Place.of_job(tmp_path / "b", job, job["name"])
    with pytest.raises(InputError, match=f"process {process.pid} on "):
        Study.open(elsewhere, write=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = time.monotonic()
    while True:
        try:
            Study.open(elsewhere, write=True).close()
            break
        except InputError:
            assert time.monotonic() - begun < 10
            time.sleep(0.05)


@pytest.mark.usefixtures("without_optuna")
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts_in_the_middle(tmp_path, job, recorded, postgres, mode):
    """Once orderly, once as if its power had failed: the search waits, nothing is lost or twice."""
    away = []

    def restart():
        time.sleep(0.3)
        postgres.stop(mode)
        away.append(time.monotonic())
        time.sleep(1.0)
        postgres.start()
        away.append(time.monotonic())

    with new_study(tmp_path / "a", job, recorded) as study:
        other = threading.Thread(target=restart)
        other.start()
        number, longest = 0, 0.0
        while other.is_alive() or number < 10:
            begun = time.monotonic()
            recorded.run_trial(study, number)
            longest, number = max(longest, time.monotonic() - begun), number + 1
        other.join()
        assert longest >= 1.0  # it was really away while something was to be written
        attempts = [study.attempts(n) for n in range(number)]
        same(study, recorded, number)
        assert attempts == [1] * number
    with Study.open(tmp_path / "a", write=True) as study:
        same(study, recorded, number)


@pytest.mark.usefixtures("without_optuna")
def test_a_driver_that_lost_the_study_writes_no_more(tmp_path, job, recorded, postgres):
    """Its connections end, another driver takes over: the first is refused from then on."""
    first = new_study(tmp_path / "a", job, recorded, 2)
    end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    Server(postgres.address, job["name"])._ask(end)
    with Study.open(Place.of_job(tmp_path / "b", job, job["name"]), write=True) as second:
        with pytest.raises(InputError, match="another search holds the study"):
            recorded.run_trial(first, 2)
        recorded.run_trial(second, 2)
    recorded.run_trial(first, 3)  # the other one has gone
    first.close()
    with Study.open(tmp_path / "a") as study:
        same(study, recorded, 4)


def test_the_password_is_nowhere(tmp_path, job, recorded, postgres, monkeypatch):
    with new_study(tmp_path / "a", job, recorded, 2) as study:
        study.publish_front()
        everything = "SELECT value FROM paretune_meta"
        engine = Server(postgres.address, job["name"]).reader()
        with engine.connect() as connection:
            stored = connection.exec_driver_sql(everything).scalars().all()
        engine.dispose()
    files = [p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert not any(postgres.password.encode() in content for content in files)
    assert not any(postgres.password in value for value in stored)
    monkeypatch.setenv("PGPASSWORD", "wrong-guess")
    with pytest.raises(EnvironmentFault, match="PGPASSWORD") as failed:
        Study.open(tmp_path / "a")
    assert "wrong-guess" not in str(failed.value) and "\n" not in str(failed.value)


def test_where_the_password_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pass"))
    to = {"host": "db", "port": 5432, "database": "d", "user": "u"}
    assert password_for(**to) is None
    (tmp_path / "pass").write_text(
        "# db:5432:d:u:no\nother:*:*:*:no\ndb:*:d:u:a\\:b\\\\c\n*:*:*:*:x"
    )
    (tmp_path / "pass").chmod(0o644)
    assert password_for(**to) is None  # others could read it
    (tmp_path / "pass").chmod(0o600)
    assert password_for(**to) == "a:b\\c"
    monkeypatch.setenv("PGPASSWORD", "first")
    assert password_for(**to) == "first"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://u:secret@h/d", "carries a password"),
        ("mysql://h/d", "not an address of a database"),
        ("postgresql://u@h", "not an address of a database"),
        ("postgresql://u@h/d?options=-c", "not an address of a database"),
        ("postgresql://u@h/d?sslmode=maybe", "unknown sslmode"),
    ],
)
def test_addresses_that_are_refused(address, message):
    with pytest.raises(InputError, match=message) as refused:
        Server(address, "x")
    assert "secret" not in str(refused.value)


def test_nothing_listens(tmp_path, recorded):
    job = {**recorded.JOB, "tracker": {"storage": f"postgresql://u@127.0.0.1:{free_port()}/d"}}
    begun = time.monotonic()
    with pytest.raises(EnvironmentFault, match=r"127.0.0.1.*refused.*; start it"):
        Study.create(tmp_path / "s", job, name="x", objectives=recorded.objectives())
    assert time.monotonic() - begun < 10


@pytest.mark.usefixtures("without_optuna")
def test_a_database_that_does_not_exist(tmp_path, job, recorded, postgres):
    tracker = {"storage": postgres.address.replace("/postgres", "/nowhere")}
    with pytest.raises(EnvironmentFault, match="nowhere.*create the database"):
        new_study(tmp_path / "a", {**job, "tracker": tracker}, recorded)
