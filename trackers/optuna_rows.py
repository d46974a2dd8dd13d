"""Finished trials written into Optuna's tables, many in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def insert_trials(storage: Any, study_id: int, trials: Sequence[Any]) -> None:
    """Append finished trials to a study, in one transaction.

    storage: an ``RDBStorage``. trials: ``optuna.trial.FrozenTrial`` whose distributions are those
    of the study's other trials; only their final values are kept. They get the numbers that follow.
    Optuna itself offers one trial at a time, with a query for every value of it.
    """
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    session = storage.scoped_session()
    try:
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        first = session.query(models.TrialModel).filter_by(study_id=study_id).count()
        rows = [
            models.TrialModel(
                study_id=study_id,
                number=first + place,
                state=trial.state,
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_complete,
            )
            for place, trial in enumerate(trials)
        ]
        session.add_all(rows)
        session.flush()
        for row, trial in zip(rows, trials, strict=True):
            of = {"trial_id": row.trial_id}
            for objective, value in enumerate(trial.values or ()):
                kept, kind = models.TrialValueModel.value_to_stored_repr(value)
                session.add(
                    models.TrialValueModel(**of, objective=objective, value=kept, value_type=kind)
                )
            for name, value in trial.params.items():
                distribution = trial.distributions[name]
                session.add(
                    models.TrialParamModel(
                        **of,
                        param_name=name,
                        param_value=distribution.to_internal_repr(value),
                        distribution_json=distribution_to_json(distribution),
                    )
                )
            for model, attributes in (
                (models.TrialUserAttributeModel, trial.user_attrs),
                (models.TrialSystemAttributeModel, trial.system_attrs),
            ):
                for key, value in attributes.items():
                    session.add(model(**of, key=key, value_json=json.dumps(value)))
        session.commit()
    except BaseException:
        session.rollback()
        raise
    finally:
        storage.scoped_session.remove()
