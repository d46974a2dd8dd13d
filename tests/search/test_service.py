"""Submitting to a cluster: addresses, tokens and versions that do not do, in one line, promptly."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from local_server import free_port

from paretune.errors import InputError


@pytest.fixture
def answers():
    """A server that answers every request with ``answers.status`` and ``answers.body``."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(self.server.body).encode()
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.status, server.body = 200, {}
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def token(monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.write_text("t" * 40)
    path.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return path


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head:8265", "'head:8265' is no address; e.g. https://head:8265"),
        ("ftp://head:8265", "is no address"),
        ("http://127.0.0.1:99999", "is no address"),
        ("http://10.1.2.3:8265", "10.1.2.3 would get the token and the code in clear; use https"),
        ("https://me:secret@head:8265", "the address carries a password"),
    ],
)
def test_addresses_that_do_not_do(address, message):
    from paretune.search.service import Service

    with pytest.raises(InputError) as caught:
        Service(address)
    assert str(caught.value).startswith("--address: ") and message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_nothing_listens():
    from paretune.search.service import Service

    begin = time.monotonic()
    with pytest.raises(InputError, match="--address: nothing listens at 127.0.0.1:"):
        Service(f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - begin < 5


def test_other_versions_of_ray_are_refused(answers, token):
    from paretune.search.service import Service

    answers.body = {"version": "4", "ray_version": "2.9.3", "ray_commit": "x", "session_name": "s"}
    with pytest.raises(InputError, match=r"Ray versions differ: the cluster runs 2\.9\.3, this is"):
        Service(answers.address)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_named_and_not_shown(answers, token, status):
    from paretune.search.service import Service

    answers.status, answers.body = status, {"error": "unauthorized"}
    with pytest.raises(InputError) as caught:
        Service(answers.address)
    assert "refuses the token" in str(caught.value)
    assert token.read_text() not in str(caught.value)


ALL = """
import json, sys
from paretune import cli

for words in json.loads(sys.argv[1]):
    sys.argv = ["paretune", *words]
    try:
        cli.main()
    except SystemExit as ended:
        heavy = sorted({"torch", "ray", "optuna", "pandas"} & set(sys.modules))
        print(f"exit {ended.code} {heavy}", file=sys.stderr, flush=True)
"""
JOB = """\
name: case
task:
  model: net.py:make
  data: {kind: imagefolder, train: /no/train, evaluate: /no/val}
objectives: [accuracy, size_bytes]
"""


def test_what_is_refused_waits_for_no_heavy_import(answers, token, tmp_path):
    """Torch and Ray take many seconds; nobody who mistyped an address has to wait for them."""
    (tmp_path / "net.py").write_text("def make(): ...\n")
    (tmp_path / "unseen.yaml").write_text(JOB)
    greedy = JOB.replace("imagefolder, train: /no/train, evaluate: /no/val", "digits")
    (tmp_path / "greedy.yaml").write_text(f"{greedy}cluster: {{resources: {{gpu: 2}}}}\n")
    nowhere = f"127.0.0.1:{free_port()}"
    import importlib.metadata

    node = {"state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 1.0}}
    dead = {"state": "DEAD", "resources_total": {"GPU": 4.0}}
    answers.body = {
        "ray_version": importlib.metadata.version("ray"),
        "data": {"result": {"result": [node, dead]}},
    }
    cases = {
        f"nothing listens at {nowhere}": ["search", "greedy.yaml", "--ray", nowhere],
        "'/no/train' does not exist here": ["search", "unseen.yaml", "--ray", nowhere],
        "--address: nothing listens": ["submit", "greedy.yaml", "--address", f"http://{nowhere}"],
        "2 GPU asked for, no node of the cluster has more than 1": (
            ["submit", "greedy.yaml", "--address", answers.address]
        ),
    }

    def said(*all_words):
        done = subprocess.run(
            [sys.executable, "-c", ALL, json.dumps(all_words)],
            **{"cwd": tmp_path, "env": dict(os.environ), "capture_output": True, "text": True},
            timeout=120,
        )
        return done.stderr.splitlines()

    lines = said(*cases.values())
    assert len(lines) == 2 * len(cases), lines
    for place, message in enumerate(cases):
        assert message in lines[2 * place] and lines[2 * place + 1] == "exit 2 []", lines
    answers.status = 403
    lines = said(["status", "raysubmit_x", "--address", answers.address])
    assert "refuses the token" in lines[0] and lines[1:] == ["exit 2 []"], lines


def test_a_token_file_that_is_not_there_is_named(answers, token):
    from paretune.search.service import Service

    token.unlink()
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH: '.*' cannot be read"):
        Service(answers.address)


def test_no_token_at_all(answers, token, monkeypatch, tmp_path):
    from paretune.search.service import Service

    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    with pytest.raises(InputError, match="no token for the cluster is known here"):
        Service(answers.address)


def test_a_search_joins_only_what_listens():
    from paretune.search.ray_connection import connect

    begin = time.monotonic()
    with pytest.raises(InputError, match="--ray: nothing listens at 127.0.0.1:"):
        connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="use `paretune submit` from outside"):
        connect("ray://head:10001")
    with pytest.raises(InputError, match="is no host:port"):
        connect("head")
    assert time.monotonic() - begin < 10
