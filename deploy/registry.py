"""A bundle in MLflow's model registry, loadable with ``mlflow.onnx`` and ``mlflow.pyfunc``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnvironmentFault, InputError, ParetuneError
from ..trackers.mlflow_link import MlflowSettings, client, experiment_id, mlflow_calls, reason
from ..trackers.mlflow_view import rounded
from .alias import move_alias
from .bundle import Bundle
from .registered import FOLDER, MANIFEST_TAG, MODEL_TAG
from .verify import CARD, EXAMPLES, MANIFEST, Refused, check_files


def register_bundle(bundle: Bundle, name: str, alias: str | None, uri: str | None) -> str:
    """Put a bundle into the registry as the next version of ``name``; returns that version.

    The registered folder holds the whole bundle byte for byte (checked after the upload) beside
    what MLflow needs. alias: moved to the new version last, so that it never points at half a
    model.
    Raises InputError on a name the registry refuses, EnvironmentFault when MLflow fails.
    """
    if bundle.model.suffix != ".onnx":
        raise InputError("--register", f"only ONNX files are registered, not {bundle.model.name}")
    study = bundle.manifest["study"]
    settings = MlflowSettings(uri).resolved(bundle.folder.parent, str(study["name"]))
    address = str(settings.uri)
    try:
        with mlflow_calls(120), tempfile.TemporaryDirectory() as scratch:
            link = client(address)
            experiment = experiment_id(link, address, str(settings.experiment))
            run = link.create_run(
                experiment,
                run_name=f"deliver {name}",
                tags={
                    "paretune.kind": "delivery",
                    "paretune.study": str(study["id"]),
                    "mlflow.source.name": "paretune",
                },
            )
            packed = _packed(bundle, Path(scratch))
            link.log_artifacts(run.info.run_id, str(packed), FOLDER)
            _verify(link, run.info.run_id, bundle, Path(scratch) / "back")
            link.set_terminated(run.info.run_id)
            return _version(link, name, alias, run, bundle)
    except ParetuneError:
        raise
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE":
            raise InputError("--register", reason(error), "choose another name") from error
        raise EnvironmentFault(f"the model registry failed: {reason(error)}") from error


def _packed(bundle: Bundle, scratch: Path) -> Path:
    """The MLflow model folder: MLmodel with signature and requirements, and the exact file."""
    import mlflow.onnx
    import onnx
    from mlflow.models import infer_signature
    from mlflow.types import Schema, TensorSpec

    signature: Any = None
    example: Any = None
    if (bundle.folder / EXAMPLES).is_file():
        with np.load(bundle.folder / EXAMPLES, allow_pickle=False) as stored:
            inputs, outputs = stored["inputs"], stored["outputs"]
        example = inputs[:1]
        signature = infer_signature(inputs, outputs)
        signature.inputs = Schema([TensorSpec(np.dtype("float32"), (-1, *inputs.shape[1:]))])
        signature.outputs = Schema([TensorSpec(np.dtype("float32"), (-1, *outputs.shape[1:]))])
    packed = scratch / FOLDER
    runtime = bundle.manifest["environment"].get("onnxruntime")
    mlflow.onnx.save_model(
        onnx.load(str(bundle.model)),
        str(packed),
        signature=signature,
        input_example=example,
        pip_requirements=[
            f"onnxruntime=={runtime}" if runtime else "onnxruntime",
            f"onnx=={onnx.__version__}",
            f"numpy=={np.__version__}",
        ],
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    for name in (*bundle.manifest["files"], MANIFEST, CARD):
        shutil.copyfile(bundle.folder / name, packed / name)
    return packed


def _verify(link: Any, run_id: str, bundle: Bundle, to: Path) -> None:
    to.mkdir()
    got = Path(link.download_artifacts(run_id, FOLDER, str(to)))
    try:
        check_files(got, bundle.manifest_sha256)
    except Refused as refusal:
        raise EnvironmentFault(
            f"MLflow gives back other files than were uploaded ({refusal}); not registered"
        ) from None


def _version(link: Any, name: str, alias: str | None, run: Any, bundle: Bundle) -> str:
    from mlflow.exceptions import MlflowException

    try:
        link.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = link.create_model_version(
        name,
        source=f"{run.info.artifact_uri}/{FOLDER}",
        run_id=run.info.run_id,
        tags=_tags(bundle),
        description=bundle.manifest["summary"],
    )
    if alias is not None:
        move_alias(link, name, alias, str(made.version))
    return str(made.version)


def _tags(bundle: Bundle) -> dict[str, str]:
    """What the manifest says, as tags of the version: its values, and what proves the files."""
    manifest = bundle.manifest
    cpu = manifest["environment"].get("cpu", {})
    told = {
        **_told(manifest["values"]),
        **_told(manifest["baseline"], "baseline."),
        "plan": manifest["plan_fingerprint"],
        "summary": manifest["summary"],
        "study": f"{manifest['study']['id']}/{manifest['study']['trial']}",
        "rung": manifest["rung"],
        "measured_on": str(cpu.get("model", "unknown")),
    }
    tags = {f"paretune.{key}": value for key, value in told.items()}
    return tags | {
        MODEL_TAG: manifest["model"]["sha256"],
        MANIFEST_TAG: bundle.manifest_sha256,
    }


def _told(values: Mapping[str, float], prefix: str = "") -> dict[str, str]:
    return {name: f"{value:.15g}" for name, value in rounded(values, prefix).items()}
