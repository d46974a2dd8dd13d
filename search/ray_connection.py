"""Connecting to a Ray cluster: in one clear line, promptly, where it cannot be."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError

REACH_S = 3.0  # to find out whether anything listens
TRIES = "5"  # of Ray's, a second apart; twenty unless told, also where the token is wrong
WHERE = "--ray"


def connect(address: str, runtime_env: Mapping[str, Any] | None = None) -> None:
    """Connect this process to the cluster at ``auto`` or ``host:port``; with Ray's token where one
    is known here (:func:`known_token`).

    runtime_env: what its workers get, as Ray takes it.
    """
    address = _ready(address)
    import ray

    with _Overheard() as said:
        try:
            ray.init(
                address=address,
                runtime_env=dict(runtime_env or {}),
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
            )
        except Exception as error:
            raise InputError(WHERE, *_why(address, error, said.text())) from None


def look(address: str) -> list[dict[str, float]]:
    """The resources of each living node of the cluster at ``auto`` or ``host:port``.

    Its head is asked, nothing is joined or started: a second, most of it Ray's import.
    Raises InputError in one line: nothing listens, the token is refused, the versions differ.
    """
    address = _ready(address)
    from ray import __version__
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub lacks it

    with _Overheard() as said:
        try:
            head = GcsClient(address=address)
            about = head.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=REACH_S)
            nodes = head.get_all_node_info(timeout=REACH_S).values()
        except Exception as error:
            raise InputError(WHERE, *_why(address, error, said.text())) from None
    theirs = json.loads(about)["ray_version"] if about else __version__  # None: it is starting
    if theirs != __version__:
        raise InputError(
            WHERE,
            f"Ray versions differ: the cluster runs {theirs}, this is {__version__}",
            f"pip install 'ray[tune]=={theirs}'",
        )
    return [dict(node.resources_total) for node in nodes if node.state == node.ALIVE]


def _ready(address: str) -> str:
    """``host:port`` of a head where something listens; Ray's settings are made."""
    if "://" in address:
        raise InputError(
            WHERE,
            f"{address!r} is no address of a cluster's head",
            "name host:port from inside the cluster, or use `paretune submit` from outside",
        )
    if address != "auto":
        check_listens(address, WHERE)  # before Ray is imported, which takes seconds
    if known_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", TRIES)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError(WHERE, f"Ray is missing ({error})", "pip install 'ray[tune]'") from None
    if address == "auto":
        address = _found()
        check_listens(address, WHERE)
    return address


class _Overheard:
    """Keeps what Ray's own library writes on standard error: it alone says why the head refuses,
    and says it once for every try. Whoever connected sees it afterwards."""

    def __enter__(self) -> _Overheard:
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._before = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def text(self) -> str:
        self._file.seek(0)
        return self._file.read().decode(errors="replace")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.dup2(self._before, 2)
        os.close(self._before)
        if kind is None:
            sys.stderr.write(self.text())
        self._file.close()


def known_token() -> str | None:
    """The token for clusters that is known here, where Ray looks for it: RAY_AUTH_TOKEN, the file
    that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token; None where there is none.

    Raises InputError when the named file cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return None
        why = getattr(error, "strerror", None) or "it is no text"
        raise InputError(
            "RAY_AUTH_TOKEN_PATH", f"{named!r} cannot be read ({why})", "name the token's file"
        ) from None


def check_listens(address: str, where: str) -> None:
    """Raise InputError when nothing accepts connections at ``host:port``."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(where, f"{address!r} is no host:port", "e.g. 10.0.0.5:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except OSError as error:
        raise InputError(
            where,
            f"nothing listens at {address} ({error.strerror or error})",
            "start Ray there with `ray start --head`, or correct the address",
        ) from None


def check_resources(
    section: str,
    wanted: Mapping[str, float],
    where: Callable[[str], str],
    taken: tuple[str, Mapping[str, float]] = ("", {}),
) -> None:
    """Raise InputError when no living node has what one actor is to hold.

    taken: a node's id, and what is held there for as long as the search runs.
    """
    import ray

    nodes: list[Mapping[str, float]] = [
        {
            name: n - (taken[1].get(name, 0) if node["NodeID"] == taken[0] else 0)
            for name, n in node["Resources"].items()
        }
        for node in ray.nodes()
        if node["Alive"]
    ]
    check_fits(section, wanted, nodes, where)


def check_fits(
    section: str,
    wanted: Mapping[str, float],
    nodes: list[Mapping[str, float]],
    where: Callable[[str], str],
) -> None:
    """The same for nodes given as their resources."""
    if any(all(node.get(name, 0) >= n for name, n in wanted.items()) for node in nodes):
        return
    for name, n in wanted.items():
        most = max((node.get(name, 0) for node in nodes), default=0)
        if most < n:
            spot = where(f"{section}.{name.lower() if name in ('CPU', 'GPU') else name}")
            raise InputError(
                spot, f"{n:g} {name} asked for, no node of the cluster has more than {most:g}", ""
            )
    raise InputError(
        where(section), f"no single node has {dict(wanted)}", "ask for less, or start such a node"
    )


def _found() -> str:
    """The address of the cluster that ``auto`` means."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    named = os.environ.get("RAY_ADDRESS", "")
    try:
        return named if ":" in named else str(canonicalize_bootstrap_address_or_die("auto"))
    except Exception:
        raise InputError(
            WHERE,
            "'auto' finds no Ray cluster on this machine",
            "start one with `ray start --head`, or name host:port",
        ) from None


def _why(address: str, error: Exception, said: str) -> tuple[str, str]:
    """(what is wrong, what to do) about a connection that was refused. said: by Ray meanwhile."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if any("uthenticat" in part or "AuthToken" in part for part in (kind, text, said)):
        return (
            f"the cluster at {address} refuses the token",
            "put its token into the file that RAY_AUTH_TOKEN_PATH names, and set "
            "RAY_AUTH_MODE=token",
        )
    if "ersion mismatch" in text:
        return f"Ray versions differ: {text[:300]}", "install the cluster's version here"
    return f"cannot connect to {address}: {kind}: {text[:300]}", "look at `ray status` there"
