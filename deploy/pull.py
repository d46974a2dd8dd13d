"""Taking the chosen point into production: fetch, verify, run again, write the bundle, register."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import InputError, ParetuneError
from .bundle import Bundle, check_place, write_bundle
from .check import Checked, check
from .formats import check_formats, deliver
from .manifest import make_manifest
from .model_card import model_card
from .registered import SCHEME, fetch_registered
from .registry import register_bundle
from .source import Source, check_trusted, choose, open_source


def pull(
    source: str | Path,
    to: str | Path,
    *,
    where: str | None = None,
    best: str | None = None,
    trial: int | None = None,
    verify: bool = True,
    register: str | None = None,
    alias: str | None = None,
    uri: str | None = None,
    job: str | Path | None = None,
    formats: Sequence[str] = (),
) -> Bundle:
    """Deliver one point of a front as a folder: model, plan, manifest, model card.

    source: a study folder, ``"mlflow:RUN_ID"`` (a search's run with ``best``, or a trial's), or
        ``"models:/NAME@ALIAS"``, which was chosen before and is fetched and checked only.
    to: the folder to write; an earlier bundle there is replaced in one step.
    where, best: the point best in ``best`` among those that meet ``where``; or its ``trial``.
    verify: run the file again on the recorded data and refuse it when the score differs (without
        it only the sha256 is checked, and the manifest says so).
    register, alias: also put it into MLflow's model registry under that name and alias.
    formats: files for further runtimes in the same bundle (onnx, openvino, executorch, litert):
        those of the search's targets as measured, others exported and measured now; see
        ``formats`` in the manifest for each one's numbers and how to load it.
    uri: MLflow's address, default the job's (to register) or MLFLOW_TRACKING_URI.
    job: with ``mlflow:RUN_ID``, your own job file: its network and data are run. Without it a run
        whose job names code that does not come with paretune is refused while ``verify`` is on.

    What was measured is what is delivered, byte for byte; where that cannot be (the file was not
    kept, another instruction set), it is measured again and the manifest says so.
    Raises InputError, NothingMeetsError, EnvironmentFault.

    >>> bundle = pull("studies/resnet20", "out", where="accuracy_drop <= 0.01", best="latency_ms")
    """
    if str(source).startswith(SCHEME):
        chosen = {"where": where, "best": best, "trial": trial, "register": register, "job": job}
        for option, value in {**chosen, "format": formats or None}.items():
            if value is not None:
                raise InputError(f"--{option}", "a registered model was chosen already", "drop it")
        return fetch_registered(str(source), Path(to), uri)
    if alias is not None and register is None:
        raise InputError("--alias", f"{alias!r} needs a registered name", "add --register NAME")
    formats = list(dict.fromkeys(formats))
    check_formats(formats)
    check_place(Path(to))
    opened = open_source(source, uri, job)
    point = choose(opened, where, best, trial)
    recorded = point.evaluation
    with tempfile.TemporaryDirectory(prefix="paretune-pull-") as folder:
        scratch = Path(folder)
        (scratch / "artifacts").mkdir()
        model = opened.fetch(recorded.artifact, scratch) if recorded.artifact else None
        if verify or formats or model is None:
            check_trusted(opened)
        trained = opened.recovered.get(point.number)
        kept = trained.weights if trained is not None else None
        weights = opened.fetch(kept, scratch) if kept is not None else None
        if kept is not None and weights is None and model is None:
            raise InputError(
                f"trial {point.number}",
                "neither its file nor its trained weights were kept",
                "choose another point",
            )
        if verify or model is None:
            checked = check(opened, recorded, model, scratch, weights)
        else:
            checked = Checked(recorded, "not run again: only the sha256 was checked", None, None)
        artifact = checked.evaluation.artifact
        if artifact is None:
            raise ParetuneError("the point has no exported file")
        if model is None or artifact != recorded.artifact:
            model = scratch / "artifacts" / artifact.file_name
        manifest = make_manifest(opened, point, checked)
        further = [deliver(opened, point, name, scratch / "formats") for name in formats]
        if further:
            manifest["formats"] = [dict(one.entry) for one in further]
        plan = checked.evaluation.plan.to_json()
        card = model_card(manifest, weights is not None)
        files = [one.path for one in further]
        bundle = write_bundle(
            Path(to), model, manifest, plan, card, checked.examples, files, weights
        )
    if register is not None:
        version = register_bundle(bundle, register, alias, _registry_uri(opened, uri))
        return replace(bundle, version=version)
    return bundle


def _registry_uri(source: Source, uri: str | None) -> str | None:
    if uri is not None:
        return uri
    if source.record is not None:
        return source.record.uri
    mlflow = (source.job.get("tracker") or {}).get("mlflow") or {}
    return mlflow.get("uri")
