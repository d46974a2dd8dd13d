"""A real PostgreSQL server of the tests' own, on a free port of this machine."""

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from local_server import free_port

ROLE = "paretune"


def binaries():
    """The folder of initdb and pg_ctl; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


class PostgresServer:
    """Made by ``initdb`` in a folder of its own; as root it runs as the user ``postgres``."""

    def __init__(self):
        self.bin = binaries()
        if self.bin is None:
            pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
        self.root = os.geteuid() == 0
        if self.root and not shutil.which("runuser"):
            pytest.skip("PostgreSQL refuses to run as root, and there is no runuser")
        self.folder = Path(tempfile.mkdtemp(prefix="paretune-postgres-"))
        self.port, self.password = free_port(), secrets.token_urlsafe(24)
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self.root:
            shutil.chown(self.folder, "postgres")
            shutil.chown(secret, "postgres")
        how = ["-U", ROLE, "-A", "scram-sha-256", "--pwfile", str(secret), "-E", "UTF8"]
        self._run("initdb", "-D", str(self.folder / "data"), "--no-sync", *how)
        self.start()

    @property
    def address(self):
        return f"postgresql://{ROLE}@127.0.0.1:{self.port}/postgres"

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "start"
        )

    def stop(self, mode="fast"):
        """mode: fast, or immediate: as if the power had failed."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def remove(self):
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop("immediate")
        time.sleep(0.1)
        shutil.rmtree(self.folder)

    def _run(self, name, *arguments):
        user = ["runuser", "-u", "postgres", "--"] if self.root else []
        command = [*user, str(self.bin / name), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr}")
