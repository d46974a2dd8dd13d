"""A cluster's Jobs API: reached with a token, checked before anything is sent."""

from __future__ import annotations

import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from ..errors import EnvironmentFault, InputError
from .ray_connection import check_listens, known_token

WHERE = "--address"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_ANSWER_S = 8.0
_LOOK_S = 60.0
_STARTING_S = 60.0
_MARK = "paretune-missing "
_LOOK = (  # no import of Ray: it would take longer than all the rest
    "import json, os, sys;"
    f"print({_MARK!r} + json.dumps([p for p in json.loads(sys.argv[1]) if not os.path.exists(p)]))"
)


class Service:
    """The Jobs API at ``address`` (``http(s)://host:port``).

    token: authenticate with Ray's token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token);
    plain_http: allow an unencrypted address beyond this machine.
    Raises InputError in one line within seconds: nothing listens, the token is wrong or missing,
    the versions of Ray differ, the address would send the token in clear.
    """

    def __init__(self, address: str, token: bool = True, plain_http: bool = False) -> None:
        self.address = _checked(address, plain_http)
        parts = urlsplit(self.address)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        check_listens(f"{parts.hostname}:{port}", WHERE)
        os.environ["RAY_AUTH_MODE"] = "token" if token else "disabled"
        self._token = known_token() if token else None
        if token and self._token is None:
            raise InputError(
                WHERE,
                "no token for the cluster is known here",
                "set RAY_AUTH_TOKEN_PATH to a file with it, or use --without-token",
            )
        theirs, ours = str(self._asked("/api/version").get("ray_version")), _own_version()
        if theirs != ours:
            raise InputError(
                WHERE,
                f"Ray versions differ: the cluster runs {theirs}, this is {ours}",
                f"pip install 'ray[default]=={theirs}'",
            )

    @cached_property
    def _client(self) -> Any:
        """Ray's own client; what it would refuse was looked at before, without importing Ray."""
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise _no_ray(error) from None
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        try:
            return JobSubmissionClient(self.address)
        except Exception as error:
            raise self._refused(error) from None

    def _asked(self, path: str, method: str = "GET", body: Any = None) -> dict[str, Any]:
        """What the cluster answers at ``path``. Ray's client is not imported for it."""
        import requests  # Ray's client uses it, too

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            answer = requests.request(
                *(method, f"{self.address}{path}"),
                json=body,
                headers=headers,
                timeout=_ANSWER_S if method == "GET" else _LOOK_S,
            )
            if answer.status_code in (401, 403):
                raise self._unwelcome()
            if not answer.ok:
                raise EnvironmentFault(
                    f"{self.address}{path}: {answer.status_code} "
                    f"{' '.join(answer.text.split())[-300:]}"
                )
            return dict(answer.json())
        except (requests.RequestException, ValueError, TypeError) as error:
            raise self._refused(error) from None

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each living node."""
        data = self._asked("/api/v0/nodes?detail=true&limit=10000").get("data", {})
        rows = data.get("result", {}).get("result", [])
        return [row.get("resources_total") or {} for row in rows if row.get("state") == "ALIVE"]

    def missing(self, paths: list[str]) -> list[str]:
        """Those of ``paths`` that the head does not see, asked in a job of its own that leaves
        nothing behind."""
        if not paths:
            return []
        command = f"python -c {shlex.quote(_LOOK)} {shlex.quote(json.dumps(paths))}"
        end = time.monotonic() + _LOOK_S
        while True:
            try:
                begun = self._asked("/api/jobs/", "POST", {"entrypoint": command})
                break
            except EnvironmentFault as error:  # it has just been started
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(1.0)
        place, status = f"/api/jobs/{begun['submission_id']}", "PENDING"
        while status not in ENDED and time.monotonic() < end:
            time.sleep(0.2)
            status = str(self._asked(place)["status"])
        text = str(self._asked(f"{place}/logs").get("logs") or "")
        if status not in ENDED:
            self._asked(f"{place}/stop", "POST")
        else:
            self._asked(place, "DELETE")
        for line in text.splitlines():
            if line.startswith(_MARK):
                return [str(path) for path in json.loads(line.removeprefix(_MARK))]
        raise EnvironmentFault(
            f"{self.address}: a first small job ended as {status}: "
            f"{' '.join(text.split())[-300:] or 'it printed nothing'}"
        )

    def submit(
        self, command: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> str:
        """Start a job; its id. A cluster that has just been started is waited for."""
        end = time.monotonic() + _STARTING_S
        while True:
            try:
                return str(
                    self._client.submit_job(
                        entrypoint=command, runtime_env=dict(runtime_env), metadata=dict(metadata)
                    )
                )
            except Exception as error:
                if "No available agent" not in str(error) or time.monotonic() > end:
                    raise self._refused(error) from None
            time.sleep(1.0)

    def status(self, job_id: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. Raises InputError on an unknown id."""
        try:
            return str(self._client.get_job_status(job_id).value)
        except (RuntimeError, OSError) as error:
            raise self._unknown(job_id, error) from None

    def message(self, job_id: str) -> str:
        """What Ray says about a job's state."""
        try:
            return " ".join(str(self._client.get_job_info(job_id).message or "").split())
        except (RuntimeError, OSError) as error:
            raise self._unknown(job_id, error) from None

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """What the job printed; with ``follow`` until it ends."""
        self.status(job_id)
        if not follow:
            try:
                yield str(self._client.get_job_logs(job_id))
            except (RuntimeError, OSError) as error:
                raise self._unknown(job_id, error) from None
            return
        import asyncio

        stream = self._client.tail_job_logs(job_id)
        loop = asyncio.new_event_loop()
        try:
            while True:
                try:
                    yield loop.run_until_complete(stream.__anext__())
                except StopAsyncIteration:
                    return
                except Exception as error:
                    raise self._unknown(job_id, error) from None
        finally:
            loop.close()

    def stop(self, job_id: str) -> bool:
        """End a job; whether it was running."""
        try:
            return bool(self._client.stop_job(job_id))
        except (RuntimeError, OSError) as error:
            raise self._unknown(job_id, error) from None

    def jobs(self) -> list[dict[str, Any]]:
        """The searches that were submitted: id, name, status, begin (seconds since 1970)."""
        try:
            listed = self._client.list_jobs()
        except (RuntimeError, OSError) as error:
            raise self._refused(error) from None
        found = [job for job in listed if (job.metadata or {}).get("paretune")]
        rows = [
            {
                "id": job.submission_id,
                "name": job.metadata["paretune"],
                "status": str(getattr(job.status, "value", job.status)),
                "begin": (job.start_time or 0) / 1000,
            }
            for job in found
        ]
        return sorted(rows, key=lambda row: -float(row["begin"]))

    def _unknown(self, job_id: str, error: Exception) -> Exception:
        if "does not exist" in str(error) or "not found" in str(error).lower():
            return InputError(
                "JOB_ID", f"the cluster knows no job {job_id!r}", "see `paretune list`"
            )
        return self._refused(error)

    def _unwelcome(self) -> InputError:
        return InputError(
            WHERE,
            f"{self.address} refuses the token",
            "set RAY_AUTH_TOKEN_PATH to a file with the cluster's own token",
        )

    def _refused(self, error: Exception) -> Exception:
        text, kind = " ".join(str(error).split()), type(error).__name__
        if kind == "AuthenticationError":
            return self._unwelcome()
        return EnvironmentFault(f"{self.address}: {text[:400]}")


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ray")
    except PackageNotFoundError as error:
        raise _no_ray(error) from None


def _no_ray(error: Exception) -> InputError:
    return InputError(
        "submit", f"Ray's Jobs API is missing ({error})", "pip install 'paretune[cluster]'"
    )


def _checked(address: str, plain_http: bool) -> str:
    """The address without its last slash, if it may be used."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise InputError(
            WHERE,
            f"{address!r:.200} is no address",
            "e.g. https://head:8265 or http://127.0.0.1:8265",
        )
    if parts.username or parts.password:
        raise InputError(
            WHERE, "the address carries a password", "put the token into RAY_AUTH_TOKEN_PATH's file"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and not plain_http:
        raise InputError(
            WHERE,
            f"{parts.hostname} would get the token and the code in clear",
            "use https, an SSH tunnel to 127.0.0.1, or say --plain-http",
        )
    return address.rstrip("/")
