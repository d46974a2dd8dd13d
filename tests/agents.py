"""A real device agent in a process of its own, for tests that measure on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SAFE = ("PATH", "LANG", "LD_LIBRARY_PATH")


class Agent:
    """``with Agent(folder) as agent``: with TLS and a token, unless ``plain``; on any free port.

    ``kill`` it (SIGKILL) and ``start`` it again: same port, token and certificate.
    """

    def __init__(self, folder: Path, plain: bool = False, module: str = "paretune.agent.main"):
        self.folder, self.plain, self.module = folder, plain, module
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.token_file = folder / "token"
        self.port, self.address, self.fingerprint = 0, "", ""
        self.python = sys.executable
        self.process: subprocess.Popen[str] | None = None
        self.path: list[str] = [p for p in sys.path if p]

    def start(self) -> Agent:
        command = [self.python, "-m", self.module, "--port", str(self.port)]
        if not self.plain:
            pair = ["--cert", str(self.folder / "cert.pem"), "--key", str(self.folder / "key.pem")]
            command += ["--token-file", str(self.token_file), *pair]
        environment = {k: os.environ[k] for k in SAFE if k in os.environ}
        environment |= {"TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(self.path)
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=(self.folder / "log").open("a"),
            text=True,
            env=environment,
            cwd=self.folder,
        )
        said = self._line()
        self.address = said.rpartition(" ")[2]
        self.port = int(said.rpartition(":")[2])
        if not self.plain:
            self.fingerprint = self._line().removeprefix("fingerprint ")
            self._line()
        return self

    def _line(self) -> str:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, (self.folder / "log").read_text()
        return line

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._closed()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=20)
        self._closed()

    def _closed(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def name(self) -> str:
        return f"remote:{self.address}"

    @property
    def options(self) -> dict[str, Any]:
        """What a target needs to reach it."""
        if self.plain:
            return {}
        return {"token_file": str(self.token_file), "fingerprint": self.fingerprint}

    def __enter__(self) -> Agent:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
