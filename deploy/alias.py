"""Where a registered model's alias points: moved forward, moved back, every move written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..trackers.mlflow_link import client, mlflow_calls, reason
from ..trackers.mlflow_read import found_address
from .registered import download_version, find_version

_BEFORE, _LOG = "paretune.before.", "paretune.moves."  # + the alias: tags of the registered model
_MOST_MOVES = 20  # kept in the tag, whose length MLflow limits


@dataclass(frozen=True)
class Move:
    """An alias went from one version to another (``None``: it was new). at: UTC, ISO 8601."""

    alias: str
    before: str | None
    version: str
    action: str  # "promote" or "rollback"
    at: str


def promote(name: str, version: str | int, alias: str, uri: str | None = None) -> Move:
    """Let ``alias`` of the registered model ``name`` point to ``version``.

    The version's files are downloaded and checked first (sha256, manifest, stored examples); when
    they are not what was registered, the alias stays where it is. Promoting the version that it
    points to already changes nothing. uri: MLflow's address, default MLFLOW_TRACKING_URI.
    Raises InputError, EnvironmentFault.
    """
    with _registry(name, uri) as link:
        found = find_version(link, name, str(version))
        with TemporaryDirectory(prefix="paretune-promote-") as folder:
            download_version(link, found, Path(folder))
        return move_alias(link, name, alias, str(found.version))


def rollback(name: str, alias: str, uri: str | None = None) -> Move:
    """Let ``alias`` point again to the version it pointed to before the last promotion.

    Repeated, it goes back further. That version is checked first as by :func:`promote`.
    Raises InputError when there is nothing before, EnvironmentFault.
    """
    with _registry(name, uri) as link:
        model = link.get_registered_model(name)
        now = model.aliases.get(alias)
        if now is None:
            known = ", ".join(sorted(model.aliases)) or "it has none"
            raise InputError("--alias", f"{name!r} has no alias {alias!r}", f"known: {known}")
        earlier = _before(model, alias)
        while earlier and earlier[-1] == str(now):
            earlier.pop()  # of a promotion that was cut short
        if not earlier:
            raise InputError(
                "--alias", f"{alias!r} of {name!r} was never anywhere but at version {now}", ""
            )
        found = find_version(link, name, earlier[-1])
        with TemporaryDirectory(prefix="paretune-rollback-") as folder:
            download_version(link, found, Path(folder))
        move = Move(alias, str(now), earlier[-1], "rollback", _now())
        link.set_registered_model_alias(name, alias, earlier[-1])
        link.set_registered_model_tag(name, _BEFORE + alias, json.dumps(earlier[:-1]))
        _write_down(link, model, move)
        return move


def moves(name: str, alias: str, uri: str | None = None) -> list[Move]:
    """The last moves of an alias, oldest first."""
    with _registry(name, uri) as link:
        return [Move(**entry) for entry in _log(link.get_registered_model(name), alias)]


def move_alias(link: Any, name: str, alias: str, version: str) -> Move:
    """Point ``alias`` to a version whose files were checked. Where it was is written down first, so
    that a move that is cut short loses nothing."""
    model = link.get_registered_model(name)
    now = model.aliases.get(alias)
    before = str(now) if now is not None else None
    move = Move(alias, before, version, "promote", _now())
    if before == version:
        return move
    if before is not None:
        earlier = _before(model, alias)
        earlier += [] if earlier[-1:] == [before] else [before]
        tag = json.dumps(earlier[-100:])
        link.set_registered_model_tag(name, _BEFORE + alias, tag)
    link.set_registered_model_alias(name, alias, version)
    _write_down(link, model, move)
    return move


def _write_down(link: Any, model: Any, move: Move) -> None:
    entries = [*_log(model, move.alias), vars(move)][-_MOST_MOVES:]
    link.set_registered_model_tag(model.name, _LOG + move.alias, json.dumps(entries))


def _before(model: Any, alias: str) -> list[str]:
    """The versions that the alias pointed to, oldest first."""
    found = _tag(model, _BEFORE + alias)
    return [str(version) for version in found] if isinstance(found, list) else []


def _log(model: Any, alias: str) -> list[dict[str, Any]]:
    keys = set(Move.__dataclass_fields__)
    found = _tag(model, _LOG + alias)
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and set(entry) == keys]


def _tag(model: Any, key: str) -> Any:
    try:
        return json.loads(model.tags.get(key, "null"))
    except ValueError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _registry(name: str, uri: str | None) -> Iterator[Any]:
    """A link to the registry that holds ``name``; what MLflow throws becomes one line."""
    address = found_address(uri)
    try:
        with mlflow_calls(120):
            yield client(address)
    except ParetuneError:
        raise
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException):
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise InputError(
                    name, "there is no such registered model", "pull one with --register"
                ) from None
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise InputError(name, reason(error), "correct the name or the alias") from None
        raise EnvironmentFault(f"the model registry failed: {reason(error)}") from error
