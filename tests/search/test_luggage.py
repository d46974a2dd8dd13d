"""What travels to a cluster: the wheel, the job, its code and weights; and what must not."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from paretune.errors import InputError
from paretune.search.luggage import pack, pack_code, unpacked
from paretune.search.wheel import build_wheel
from paretune.tasks.job import load_job

ROOT = Path(__file__).parent.parent.parent
JOB = """\
name: mine
task:
  model: nets/small.py:make
  weights: weights.safetensors
  score: /cluster/code/score.py:score
  data: {kind: imagefolder, train: /cluster/train, evaluate: /cluster/val}
target: {remote: {token_file: /etc/agent-token}, name: "remote:https://board:8765"}
tracker: {mlflow: {uri: "https://mlflow.lan"}}
"""


@pytest.fixture
def job(tmp_path):
    home = tmp_path / "home"
    (home / "nets" / "parts").mkdir(parents=True)
    (home / "nets" / "small.py").write_text("from parts.blocks import make\n")
    (home / "nets" / "parts" / "__init__.py").touch()
    (home / "nets" / "parts" / "blocks.py").write_text("def make(): ...\n")
    (home / "nets" / "secrets.txt").write_text("not for others")
    (home / "weights.safetensors").write_bytes(b"weights")
    (home / "job.yaml").write_text(JOB)
    return home / "job.yaml"


def packed(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_job_its_code_and_its_weights_travel(job, tmp_path):
    folder = tmp_path / "luggage"
    folder.mkdir()
    stays = pack(job, folder)
    assert packed(folder) == [
        "job.yaml",
        "nets/parts/__init__.py",
        "nets/parts/blocks.py",
        "nets/small.py",
        "weights.safetensors",
    ]
    assert (folder / "job.yaml").read_bytes() == job.read_bytes()
    assert stays == {
        "task.score": "/cluster/code/score.py",
        "task.data.train": "/cluster/train",
        "task.data.evaluate": "/cluster/val",
        "target.remote.token_file": "/etc/agent-token",
    }
    assert load_job(folder / "job.yaml").task.model == f"{folder}/nets/small.py:make"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("/cluster/train", "data/train", "task.data.train: 'data/train' does not travel"),
        ("nets/small.py", "../small.py", "task.model: '../small.py' does not travel"),
        ("nets/small.py", "nets/other.py", "task.model: no such file"),
        ("weights.safetensors", "other.safetensors", "task.weights: 'other.safetensors' does not"),
        ("https://mlflow.lan", "sqlite:///m.db", "tracker.mlflow.uri: 'sqlite:///"),
    ],
)
def test_what_the_cluster_could_not_find_is_refused(job, tmp_path, old, new, message):
    job.write_text(JOB.replace(old, new))
    (tmp_path / "luggage").mkdir()
    with pytest.raises(InputError, match="job.yaml:[0-9]+: ") as caught:
        pack(job, tmp_path / "luggage")
    assert message in str(caught.value)


def test_a_workers_job_names_the_code_in_its_own_directory(job, tmp_path):
    folder = tmp_path / "luggage"
    folder.mkdir()
    text = JOB.replace("/cluster/code/score.py:score", "accuracy").replace("imagefolder", "digits")
    text = text.replace(", train: /cluster/train, evaluate: /cluster/val", "")
    job.write_text(text)
    resolved = load_job(job)
    code = pack_code(resolved, folder)
    assert code == {str(job.parent): "code0", str(job.parent / "nets"): "code1"}
    there = unpacked(resolved.to_json(), code, Path("/node/dir"))
    assert there["task"]["model"] == "/node/dir/code1/small.py:make"
    assert there["folder"] == "/node/dir/code0"
    assert there["task"]["weights"] == resolved.task.weights  # travels with the network
    assert packed(folder / "code1") == ["parts/__init__.py", "parts/blocks.py", "small.py"]


@pytest.mark.parametrize(
    ("submitted", "joined"),
    [
        ({"working_dir": "gcs://package.zip", "py_modules": ["gcs://wheel.whl"]}, set()),
        ({"env_vars": {"X": "y"}}, {"working_dir", "py_modules"}),  # the entrypoint of a RayJob
        (None, {"working_dir", "py_modules"}),
    ],
)
def test_only_what_submit_sent_is_there_already(job, monkeypatch, submitted, joined):
    from paretune.search import cluster, ray_connection

    runtime_envs = []
    monkeypatch.setattr(cluster, "check_cluster", lambda *_: None)
    monkeypatch.setattr(ray_connection, "connect", lambda _, env: runtime_envs.append(env))
    if submitted is not None:
        message = json.dumps({"runtime_env": submitted, "metadata": {}})
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", message)
    monkeypatch.chdir(job.parent)
    job.write_text(JOB.replace("/cluster/code/score.py:score", "accuracy"))
    cluster.Cluster("auto", load_job("job.yaml"))
    assert [set(env) for env in runtime_envs] == [joined]


def test_the_wheel_is_the_package_and_installs(tmp_path):
    """Its packages are those of the project; what pip makes of it runs."""
    for name in "ab":
        (tmp_path / name).mkdir()
    wheel, again = build_wheel(tmp_path / "a"), build_wheel(tmp_path / "b")
    assert wheel.name == again.name and wheel.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = archive.read(next(n for n in names if n.endswith("RECORD"))).decode()
        assert {line.split(",")[0] for line in record.splitlines()} == set(names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {p.replace(".", "/") for p in project["tool"]["setuptools"]["packages"]}
    assert {n.rpartition("/")[0] for n in names if n.endswith(".py")} == packages
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    check_installed(tmp_path / "installed", tmp_path)


@pytest.mark.slow
def test_pip_takes_the_wheel_without_looking_for_dependencies(tmp_path):
    """As Ray installs it on a node."""
    wheel = build_wheel(tmp_path)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--target"]
    subprocess.run([*command, str(tmp_path / "installed"), str(wheel)], check=True)
    check_installed(tmp_path / "installed", tmp_path)


def check_installed(place, elsewhere):
    """What lies in ``place`` runs and is, to the byte, the package under test."""
    code = "import paretune; print(paretune.__file__, paretune.__version__)"
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(place)},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert out == [str(place / "paretune" / "__init__.py"), "0.1.0"]
    parts = (*ROOT.glob("search/*.py"), *ROOT.glob("objectives/page.*"), ROOT / "py.typed")
    for path in (*parts, ROOT / "cli.py"):
        assert (place / "paretune" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
