"""A Ray cluster of the tests' own on this machine: nodes that are started, and killed whole."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from local_server import free_port

START_S = 240.0
_SETTINGS = {
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a lost head is given up sooner than usual
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
}


class RayCluster:
    """Token authentication, the loopback only, everything below one temporary folder."""

    def __init__(self, dashboard=False):
        self.dashboard = free_port() if dashboard else None  # where its Jobs API listens
        self.folder = Path(tempfile.mkdtemp(prefix="ptr-"))  # short: it holds Unix sockets
        token = self.folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        package = Path(__file__).resolve().parents[2]  # the folder that holds this checkout
        patient = {k: v for k, v in _SETTINGS.items() if "health_check" not in k}
        self.environment = {
            **os.environ,
            **(patient if dashboard else _SETTINGS),
            "RAY_worker_register_timeout_seconds": "300",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "HOME": str(self.folder),
            "PYTHONPATH": os.environ.get("PYTHONPATH", str(package)),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.port, self.nodes = free_port(), []
        self.started = self.heads = 0

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def jobs(self):
        """The address of its Jobs API."""
        return f"http://127.0.0.1:{self.dashboard}"

    @contextmanager
    def running(self, cpus):
        """With a head; this process knows the cluster's token meanwhile."""
        keys = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
        before = {key: os.environ.get(key) for key in keys}
        try:
            os.environ.update({key: self.environment[key] for key in keys})
            forget_token()  # of another cluster, or none
            self.start_head(cpus)
            yield self
        finally:
            self.remove()
            for key, value in before.items():
                os.environ.pop(key, None)
                if value is not None:
                    os.environ[key] = value
            forget_token()

    def start_head(self, cpus):
        """A head on the port it had before, with a folder of its own."""
        self.heads += 1
        arguments = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        if self.dashboard is not None:
            arguments[2:] = ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        head = self._start(cpus, *arguments, f"--temp-dir={self.folder}/{self.heads}")
        end = time.monotonic() + START_S
        while self.dashboard is not None:  # it listens a little later than the head
            try:
                socket.create_connection(("127.0.0.1", self.dashboard), 1).close()
                break
            except OSError:
                if time.monotonic() > end or head.poll() is not None:
                    raise RuntimeError("the dashboard does not listen") from None
                time.sleep(0.2)
        return head

    def start_node(self, cpus, *has):
        """A further node, with a folder of its own as on another machine: in a common one a node
        would install a job's wheel over the one that the others are reading.

        has: what else it has, e.g. ``--num-gpus=1``."""
        own = f"--temp-dir={self.folder}/n{self.started}"
        return self._start(cpus, f"--address={self.address}", own, *has)

    def _start(self, cpus, *arguments):
        """A node that is up: its ``ray start`` has said so."""
        limits = ["--object-store-memory=300000000", "--disable-usage-stats"]
        here = ["--node-ip-address=127.0.0.1", f"--num-cpus={cpus}", "--block"]
        self.started += 1
        said = self.folder / f"log{self.started}"
        with open(said, "w") as log:
            node = subprocess.Popen(
                ["ray", "start", *arguments, *here, *limits],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(node)
        end = time.monotonic() + START_S
        while "Ray runtime started" not in said.read_text():
            if time.monotonic() > end or node.poll() is not None:
                raise RuntimeError(said.read_text()[-2000:])
            time.sleep(0.2)
        return node

    def kill(self, node):
        """SIGKILL to every process of the node at once, as when its power fails."""
        for pid in [*descendants(node.pid), node.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        node.wait()
        self.nodes.remove(node)

    def remove(self):
        for node in list(self.nodes):
            self.kill(node)
        time.sleep(0.5)
        shutil.rmtree(self.folder, ignore_errors=True)


def forget_token():
    """Have this process, should it have imported Ray, read the settings about tokens again."""
    if "ray" in sys.modules:
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()


def descendants(pid):
    """Every living process below ``pid``."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def at_work(node):
    """The evaluators' processes on a node of the cluster."""
    found = []
    for pid in descendants(node.pid):
        with contextlib.suppress(OSError):
            if b"paretune.search.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def runs_from(pid):
    """The folder that a process of the cluster has paretune from."""
    settings = Path(f"/proc/{pid}/environ").read_text().split("\0")
    (path,) = [line for line in settings if line.startswith("PYTHONPATH=")]
    places = map(Path, path.removeprefix("PYTHONPATH=").split(os.pathsep))
    return next(place for place in places if (place / "paretune" / "__init__.py").exists())
