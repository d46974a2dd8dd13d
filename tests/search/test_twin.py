"""A worker whose working directory is the package's own folder loads no second copy of a room."""

import os
from pathlib import Path

import pytest

import paretune
from paretune.search.pool import Pool


@pytest.mark.parametrize("entry", ["", str(Path(paretune.__file__).parent)])
def test_a_worker_in_the_root_loads_no_twin(fakes, factory, monkeypatch, entry):
    root = Path(paretune.__file__).parent
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(entry)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    plan = fakes.ToySpace().plan({"rank:l0": 1})
    with Pool(factory, {"faults": {plan.fingerprint: "modules"}}) as pool:
        pool.submit(0, plan)
        (result,) = pool.collect(30.0)
    notes = result.evaluation.notes
    assert notes["cwd"] == str(root)
    assert notes["twins"] == []
    assert str(root) not in [str(Path(folder).resolve()) for folder in notes["path"]]
