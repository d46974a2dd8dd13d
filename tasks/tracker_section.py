"""The ``tracker`` section of a job file: who remembers, besides the study folder."""

from __future__ import annotations

import os
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from .section import Section, Text


def tracking_uri() -> str:
    """Where MLflow is when a job does not say; a file in the environment is in the working
    directory, as MLflow has it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or ""
    start, _, path = uri.partition("sqlite:///")
    if start == "" and path and not path.startswith(("/", ":")):
        return f"sqlite:///{os.path.abspath(path)}"
    return uri or "sqlite:///mlflow.db"


class MlflowSection(Section):
    """Where MLflow keeps the runs.

    uri: ``sqlite:///FILE.db`` or ``http://HOST:PORT`` (default: what MLFLOW_TRACKING_URI says when
        the search starts, else ``mlflow.db`` beside the job file).
    experiment: its name (default: what MLFLOW_EXPERIMENT_NAME says, else the job's).
    artifacts: whether the exported files of the final front are uploaded.
    """

    uri: Text = Field(default_factory=tracking_uri, validate_default=True)
    experiment: Text | None = None
    artifacts: Literal["front", "none"] = "front"

    @field_validator("uri")
    @classmethod
    def _no_secret(cls, uri: str) -> str:
        if uri.lower().startswith("http") and "@" in urlsplit(uri).netloc:
            raise PydanticCustomError(
                "secret",
                "the address carries a password; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment instead",
            )
        return _no_password(uri)


def _no_password(address: str) -> str:
    parts = urlsplit(address)
    asked = {name.lower() for name, _ in parse_qsl(parts.query)}
    if ":" in parts.netloc.rpartition("@")[0] or asked & {"password", "pwd", "passwd"}:
        raise PydanticCustomError(
            "secret",
            "the address carries a password; leave it out and set PGPASSWORD (or ~/.pgpass), "
            "AWS_SECRET_ACCESS_KEY ... in the environment instead",
        )
    return address


Address = Annotated[Text, AfterValidator(_no_password)]


class TrackerSection(Section):
    """WHO remembers, besides the study folder. Passwords come from the environment.

    storage: ``postgresql://user@host/database`` instead of ``study.db``, where the driver may move
        to another machine. artifacts: an fsspec address (``s3://bucket/prefix``) for a copy of each
        exported file. mlflow: where runs are logged (default: nowhere).
    """

    storage: Address | None = None
    artifacts: Address | None = None
    mlflow: MlflowSection | None = None
