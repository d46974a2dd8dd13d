"""A version in MLflow's model registry, fetched and checked before anything uses it."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..trackers.mlflow_link import client, mlflow_calls, reason
from ..trackers.mlflow_read import found_address
from .bundle import Bundle, copy_bundle
from .verify import TOLERANCE, Refused, check_files, rerun

FOLDER = "model"  # of the run's artifacts
SCHEME = "models:/"
MANIFEST_TAG, MODEL_TAG = "paretune.manifest_sha256", "paretune.sha256"
_NAME = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


def fetch_registered(source: str, to: Path, uri: str | None = None) -> Bundle:
    """Deliver a registered model, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, as a bundle.

    Its manifest must be the one that was registered, every file the manifest's, and the model must
    give the stored outputs; otherwise it is refused and what is at ``to`` stays there. MLflow's
    own loaders are not used, so nothing is unpickled. Raises InputError, EnvironmentFault.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise InputError(source, "names no registered model", "write models:/NAME@ALIAS")
    address, name = found_address(uri), match["name"]
    try:
        with mlflow_calls(120), TemporaryDirectory(prefix="paretune-fetch-") as scratch:
            link = client(address)
            version = match["version"]
            if match["alias"]:
                aliases = link.get_registered_model(name).aliases
                if match["alias"] not in aliases:
                    known = ", ".join(sorted(aliases)) or "it has none"
                    raise InputError(source, "there is no such alias", f"known: {known}")
                version = str(aliases[match["alias"]])
            found = find_version(link, name, version)
            got = download_version(link, found, Path(scratch))
            return copy_bundle(got, to, found.tags[MANIFEST_TAG])
    except ParetuneError:
        raise
    except Exception as error:
        from mlflow.exceptions import MlflowException

        missing = "RESOURCE_DOES_NOT_EXIST"
        if isinstance(error, MlflowException) and error.error_code == missing:
            raise InputError(source, "there is no such registered model", "") from None
        raise EnvironmentFault(f"the model registry failed: {reason(error)}") from error


def find_version(link: Any, name: str, version: str) -> Any:
    """A version that paretune registered. Raises InputError when there is none."""
    from mlflow.exceptions import MlflowException

    link.get_registered_model(name)  # its own error where there is none
    try:
        found = link.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = sorted(int(v.version) for v in link.search_model_versions(f"name = '{name}'"))
        listed = ", ".join(map(str, known)) or "none"
        raise InputError(name, f"there is no version {version!r}", f"known: {listed}") from None
    if MANIFEST_TAG not in found.tags:
        raise InputError(
            name,
            f"version {version} was not registered by paretune, so it cannot be checked",
            "register it with `paretune pull --register`",
        )
    return found


def download_version(link: Any, version: Any, to: Path) -> Path:
    """The version's files in a folder below ``to``, checked and run on the stored examples.

    Raises InputError when they are not what was registered.
    """
    where = f"{version.name} version {version.version}"
    got = Path(link.download_artifacts(version.run_id, FOLDER, str(to)))
    try:
        manifest = check_files(got, version.tags[MANIFEST_TAG])
        if manifest["model"]["sha256"] != version.tags.get(MODEL_TAG):
            raise Refused("the manifest is of another model than was registered")
        difference = rerun(got, manifest)
        if difference is not None and difference > TOLERANCE:
            raise Refused(f"its outputs differ from the stored ones by {difference:.1%}")
    except Refused as refusal:
        raise InputError(where, str(refusal), "register it again from its study") from None
    return got
