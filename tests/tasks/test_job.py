"""Job files: defaults, resolution, round trip, and one clear line for every mistake."""

from __future__ import annotations

import copy
import json
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.tasks.job import Job, job_schema, load_job
from paretune.tasks.sections import Prune, Rank

MINIMAL = {"name": "a", "task": {"model": "net.py:make", "data": {"kind": "digits"}}}

FULL = """\
name: resnet20-cifar10
task:
  model: paretune.tasks.vision:cifar_resnet
  model_args: {depth: 20}
  weights: ${PARETUNE_TEST_DIR}/r20.safetensors
  data:
    kind: imagefolder
    train: data/train
    search: 1000
    evaluate: ../val
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
space: {prune: {smallest_keep: 0.5, step: 8}, rank: {ratios: [0.5]}, freeze: [linear]}
objectives:
- accuracy
- size_bytes
- {latency_ms: {target: onnxruntime-cpu, batch: 4}}
constraints: ["accuracy >= 0.90"]
search:
  trials: 200
  sampler: tpe
tracker: {mlflow: {uri: "sqlite:///mlflow.db"}}
"""


def with_value(path: str, value: object) -> dict:
    data = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    inner = data
    for key in parents:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return data


def refusal(data: object) -> str:
    with pytest.raises(InputError) as caught:
        load_job(data)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def test_defaults_are_filled_in() -> None:
    job = load_job(MINIMAL)
    assert job.space.prune is True and job.space.rank is True and job.space.bits is None
    assert job.space.freeze is None
    assert job.objectives == ("accuracy", "size_bytes", "latency_ms")
    assert (job.search.trials, job.search.sampler, job.search.workers) == (100, "guided", 1)
    assert (job.search.deadline, job.search.timeout) == (600.0, None)
    assert job.target.name == "onnxruntime-cpu" and job.target.format == "qoperator"
    assert job.tracker is None
    assert job.folder == Path.cwd()


def test_a_full_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PARETUNE_TEST_DIR", "/somewhere")
    file = tmp_path / "job.yaml"
    file.write_text(FULL)
    job = load_job(file)
    assert job.task.weights == "/somewhere/r20.safetensors"
    assert job.task.data.train == str(tmp_path / "data/train")
    assert job.task.data.evaluate == str(tmp_path.parent / "val")
    assert job.task.data.search == 1000
    assert job.space.prune == Prune(smallest_keep=0.5, step=8)
    assert job.space.rank == Rank(ratios=(0.5,))
    assert job.target.name == "onnxruntime-cpu" and job.target.batch == 4
    assert job.tracker.mlflow.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert job.tracker.mlflow.experiment == "resnet20-cifar10"
    assert job.folder == tmp_path
    assert job.where("search.sampler") == f"{file}:21: search.sampler"
    assert job.where("objectives[2].latency_ms") == f"{file}:17: objectives[2].latency_ms"
    assert job.where("constraints[0]") == f"{file}:18: constraints[0]"
    assert job.where("search.seed") == f"{file}:19: search.seed"
    assert job.where("target.name") == f"{file}: target.name"


def test_round_trip_through_json_and_pickle(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PARETUNE_TEST_DIR", "/somewhere")
    file = tmp_path / "job.yaml"
    file.write_text(FULL)
    job = load_job(str(file))
    monkeypatch.delenv("PARETUNE_TEST_DIR")
    (tmp_path / "elsewhere").mkdir()
    resolved = tmp_path / "elsewhere" / "job.yaml"
    resolved.write_text(job.to_yaml())
    assert load_job(resolved) == job
    monkeypatch.chdir("/")
    again = load_job(json.loads(json.dumps(job.to_json())))
    assert again == job and hash(again) == hash(job) and again.fingerprint == job.fingerprint
    assert again.folder == tmp_path
    sent = pickle.loads(pickle.dumps(job))
    assert sent == job and sent.where("search.sampler") == job.where("search.sampler")
    assert load_job(job) is job


def test_code_in_files_is_found_beside_the_job(tmp_path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "name: a\ntask: {model: 'net.py:make', score: 'pkg.mod:f', data: {kind: 'd.py:g'}}"
    )
    job = load_job(file)
    assert job.task.model == f"{tmp_path}/net.py:make"
    assert job.task.data.kind == f"{tmp_path}/d.py:g"
    assert job.task.score == "pkg.mod:f"


def test_a_job_cannot_be_changed() -> None:
    job = load_job(MINIMAL)
    with pytest.raises(Exception, match="frozen"):
        job.name = "b"


WRONG = [
    ("search.trails", 1, "search.trails: unknown key 'trails'; did you mean 'trials'?"),
    ("serch", {}, "serch: unknown key 'serch'; did you mean 'search'?"),
    ("space.prune", {"smallest_kep": 1}, "did you mean 'smallest_keep'?"),
    ("search.trials", "10", "expected a whole number, got '10'; remove the quotes"),
    ("search.trials", True, "expected a whole number, got True"),
    ("search.trials", 10.5, "expected a whole number, got 10.5"),
    ("search.trials", 0, "0 must be at least 1"),
    ("search.trials", -1, "at least 1"),
    ("search.trials", 1_000_000_000, "must be at most 100000"),
    ("search.trials", 10**400, "over 64 bits"),
    ("search.workers", 65, "must be at most 64"),
    ("search.timeout", float("nan"), "expected a finite number, got nan"),
    ("search.timeout", float("inf"), "expected a finite number, got inf"),
    ("search.timeout", 0, "must be above 0"),
    ("search.deadline", "1e-3", "expected a number, got '1e-3'; write it as 1.0e-3"),
    ("search.seed", -1, "at least 0"),
    ("search", None, "expected a mapping, got nothing; fill it in, or remove the key"),
    ("search", [], "expected a mapping, got a list"),
    ("space.prune", {"smallest_keep": 95}, "must be at most 1; did you mean 0.95?"),
    ("target", {"calibration": 1}, "must be at least 8"),
    (
        "space.rank",
        {"ratios": [50]},
        "space.rank.ratios[0]: 50 must be at most 1; did you mean 0.5?",
    ),
    ("space.rank", {"ratios": []}, "is empty"),
    ("space.prune", "yes", "expected true or false or a mapping, got 'yes'"),
    ("space.bits", [], "is empty"),
    ("space.bits", [8, 8], "listed twice"),
    ("space.bits", [7.5], "got 7.5; round it"),
    ("space.bits", [8, 64], "at most 32"),
    ("space.bits", ["w4b8"], "space.bits[0]: 'w4b8' is not known here; write 8, or w4a32"),
    ("space.bits", 8, "expected a list, got 8; put it in brackets"),
    ("space.freeze", "linear", "put it in brackets"),
    ("name", False, "expected text, got False; put quotes around it"),
    ("name", "a/b", "has a slash or a control character"),
    ("name", "", "is empty"),
    ("target.format", "qdp", "did you mean 'qdq'?"),
    ("objectives", [], "is empty"),
    ("objectives", "accuracy", "expected a list"),
    ("objectives", ["accuracy", "accuracy"], "listed twice"),
    ("objectives", [{}], "an objective is a name or one name: options"),
    ("objectives", [{"latency_ms": 3}], "objectives[0].latency_ms: expected a mapping, got 3"),
    (
        "objectives",
        ["macs", {"latency_ms": {"tarjet": "x"}}],
        "objectives[1].latency_ms.tarjet: unknown key 'tarjet'; did you mean 'target'?",
    ),
    ("objectives", ["macs", {"latency_ms": {"target": []}}], "expected a target's name, got []"),
    ("objectives", [3], "objectives[0]: expected text or a mapping, got 3"),
    ("constraints", "accuracy > 1", "put it in brackets"),
    ("task.modle", "m:x", "task.modle: unknown key 'modle'; did you mean 'model'?"),
    ("task.data.search", [1], "expected text or a whole number, got a list"),
    ("task.data.search", -1, "at least 1"),
    ("task.data.channels", 2, "2 is not known here; write 1 or 3"),
    ("task.data.std", [0.0], "must be above 0"),
    ("task.weights", "${PARETUNE_NOT_SET}/w.pt", "'PARETUNE_NOT_SET' is not set"),
    ("task.weights", "${}/w.pt", "is not set"),
    ("task.weights", "~/w.pt", "write ${HOME} instead"),
    ("task.weights", "a\nb.pt", "has a control character"),
    ("task.model_args", {"x": {1}}, "a set is no plain value"),
    ("task.model_args", {"x": float("nan")}, "expected a finite number"),
    ("task.model_args", {1: 2}, "key 1 is not text"),
    ("recover", {"epoch": 3}, "recover.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
    ("recover.method", "distill", "did you mean 'distil'?"),
    ("recover.mix", 90, "recover.mix: 90 must be at most 1; did you mean 0.9?"),
    ("recover.temperature", 0, "recover.temperature: 0 must be above 0"),
    ("recover.epochs", 0, "at least 1"),
    ("recover.features", 3, "recover.features"),
    ("recover.augment", "crop_flp", "'crop_flp' is not known here; did you mean 'crop_flip'?"),
    ("recover.device", "gpu", "recover.device: write auto, cpu, cuda or cuda:1"),
    ("recover.batch", 1, "at least 2"),
    ("tracker", {"mlflow": {"uri": "https://u:secret@host/"}}, "the address carries a password"),
    ("tracker", {"mlflow": {"uri": "mysql://u:secret@host/d"}}, "the address carries a password"),
    ("tracker", {"mlflow": {"uri": "postgresql://u:secret@host/d"}}, "the address carries a passw"),
    ("tracker", {"mlflow": {"uri": "mysql://h/d?password=secret"}}, "the address carries a passw"),
    ("tracker", {"storage": "postgresql://u:secret@host/d"}, "the address carries a password"),
    ("tracker", {"artifacts": "s3://key:secret@bucket"}, "the address carries a password"),
    ("tracker", {"mlflow": {"artifacts": "all"}}, "not known here"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), WRONG, ids=[f"{p}-{m[:20]}" for p, _, m in WRONG]
)
def test_a_mistake_gives_one_line(path: str, value: object, message: str) -> None:
    told = refusal(with_value(path, value))
    assert message in told
    assert "secret" not in told


def test_missing_keys() -> None:
    assert "the key 'name' is missing" in refusal({"task": MINIMAL["task"]})
    assert "task: the key 'model' is missing" in refusal(
        {"name": "a", "task": {"data": {"kind": "digits"}}}
    )
    typo = {"name": "a", "task": {"modle": "m:x", "data": {"kind": "digits"}}}
    assert "did you mean 'model'?" in refusal(typo)


def test_messages_name_the_line(tmp_path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: a\ntask:\n  model: m:x\n  data: {kind: digits}\nsearch:\n  trails: 5\n")
    assert refusal(file).startswith(f"{file}:6: search.trails: unknown key 'trails'")
    file.write_text("name: a\ntask:\n  model: m:x\n  data: {}\n")
    assert refusal(file).startswith(f"{file}:4: task.data: the key 'kind' is missing")
    file.write_text("name: no\ntask:\n  model: m:x\n  data: {kind: digits}\n")
    assert refusal(file).startswith(f"{file}:1: name: expected text, got False; put quotes")


def test_an_option_that_overrides_a_key_is_blamed_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(MINIMAL), encoding="utf-8")  # JSON is YAML
    job = load_job(path).replaced({"search.sampler": ("--sampler", "tpe")})
    assert job.search.sampler == "tpe" and load_job(path).search.sampler == "guided"
    assert job.where("search.sampler") == "--sampler"
    assert job.where("task.model").startswith(f"{path}:")
    with pytest.raises(InputError, match="^--trials: 0 must be at least 1"):
        job.replaced({"search.trials": ("--trials", 0)})
    with pytest.raises(InputError, match="^--method: 'distill' .*'distil'"):
        job.replaced({"recover.method": ("--method", "distill")})
    assert job.replaced({"search.seed": ("--seed", 3)}).where("search.sampler") == "--sampler"


def test_targets_are_those_named_the_section_first() -> None:
    data = with_value("target", {"name": "here"})
    data["objectives"] = ["macs", {"latency_ms": {"target": "there"}}]
    job = load_job(data)
    assert (job.target.name, job.target.also) == ("here", ("there",))
    beside = load_job(with_value("target", {"also": ["there"]}))
    assert (beside.target.name, beside.target.also) == ("onnxruntime-cpu", ("there",))
    assert load_job(beside.to_json()) == beside
    data["objectives"] = ["macs", {"latency_ms": {"target": ["a", "b"]}}]
    job = load_job({**data, "target": {}})
    assert (job.target.name, job.target.also) == ("a", ("b",))
    assert job.objectives[1:] == ({"latency_ms": {"target": "a"}}, {"latency_ms": {"target": "b"}})
    data["objectives"] = ["accuracy", {"latency_ms": {"batch": 2}}, {"latency_ratio": {"batch": 3}}]
    assert "objectives[2].latency_ratio.batch: 3 differs from 2" in refusal(data)
    data["objectives"] = ["accuracy", {"latency_ms": {"target": 3}}]
    assert "expected a target's name, got 3" in refusal(data)
    data["objectives"] = ["accuracy", {"latency_ms": {"target": "here", "batch": True}}]
    assert "expected a whole number" in refusal(data)


def test_a_self_containing_mapping_is_refused() -> None:
    args: dict = {}
    args["again"] = args
    assert "nesting deeper" in refusal(with_value("task.model_args", args))


def test_the_schema_names_every_section() -> None:
    schema = job_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"name", "task"}
    assert {"space", "target", "objectives", "search", "tracker"} <= set(schema["properties"])


_words = st.sampled_from(
    ["name", "task", "model", "data", "kind", "space", "prune", "bits", "search", "trials", "int"]
    + ["mlflow", "objectives", "bool", "Prune", "smallest_keep", "ratios", "latency_ms", "target"]
)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["${X}", "a:b", "x.py:f", "~", "sqlite:///x", "torchvision:x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_words | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def _places(data: object, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    if isinstance(data, dict):
        for key, value in data.items():
            found += _places(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            found += _places(value, (*path, index))
    return found


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_jobs_give_a_job_or_one_line(data) -> None:
    job = load_job(
        MINIMAL | {"space": {"prune": {"smallest_keep": 0.5}, "rank": {"ratios": [0.5]}}}
    )
    raw = job.to_json()
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(_places(raw)))
        inner = raw
        for key in parents:
            inner = inner[key]
        action = data.draw(st.sampled_from(["set", "drop", "add"]))
        if action == "set":
            inner[last] = data.draw(_values)
        elif action == "drop" and isinstance(inner, dict):
            inner.pop(last)
        elif isinstance(inner, dict):
            inner[data.draw(_words | st.text(max_size=6))] = data.draw(_values)
        if not _places(raw):
            break
    start = time.process_time()
    try:
        result = load_job(raw)
        assert isinstance(result, Job)
        assert load_job(result.to_json()) == result
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    assert time.process_time() - start < 1


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_give_a_job_or_one_line(data, tmp_path_factory) -> None:
    text = FULL.replace("${PARETUNE_TEST_DIR}/", "")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 8))
        text = text[:at] + data.draw(st.text(max_size=6)) + text[at + cut :]
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    start = time.process_time()
    try:
        assert isinstance(load_job(file), Job)
    except InputError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 1


def test_a_job_that_names_no_mlflow_follows_the_environment(tmp_path, monkeypatch):
    job = {"name": "a", "task": {"model": "net.py:make", "data": {"kind": "digits"}}}
    job["folder"] = str(tmp_path / "job")
    silent, named = ({**job, "tracker": {"mlflow": m}} for m in ({}, {"uri": "sqlite:////own.db"}))

    def place(said):
        found = load_job(said)
        assert load_job(found.to_json()) == found
        return found.tracker.mlflow.uri, found.tracker.mlflow.experiment

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert place(silent) == (f"sqlite:///{tmp_path}/job/mlflow.db", "a")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lan")
    assert place(silent) == ("https://mlflow.lan", "theirs")
    assert place(named) == ("sqlite:////own.db", "theirs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    assert place(silent)[0] == f"sqlite:///{tmp_path}/here.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.lan")
    with pytest.raises(InputError, match="carries a password") as refused:
        load_job(silent)
    assert "secret" not in str(refused.value)
