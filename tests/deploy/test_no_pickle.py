"""Nothing is unpickled between a study and production: the code says so, and a canary does."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import paretune

ROOT = Path(paretune.__file__).parent
ROOMS = (*("tasks", "spaces", "targets", "agent", "operators", "objectives"), "trackers", "deploy")
FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ALLOWED_IMPORT = {"tasks/checkpoint.py"}  # for the name of the error that refuses code


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def complaints(path: Path) -> list[str]:
    """What in a file could unpickle something."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] in FORBIDDEN and _named(path) not in ALLOWED_IMPORT:
                found.append(f"line {node.lineno}: imports {name}")
        if not isinstance(node, ast.Call):
            continue
        called, given = dotted(node.func), {k.arg: k.value for k in node.keywords}
        value = {name: getattr(v, "value", None) for name, v in given.items()}
        if called == "torch.load" and value.get("weights_only") is not True:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
        if called.endswith(("np.load", "numpy.load")) and value.get("allow_pickle") is not False:
            found.append(f"line {node.lineno}: numpy.load without allow_pickle=False")
        if called.split(".")[0] in FORBIDDEN or called in ("torch.jit.load", "eval", "exec"):
            found.append(f"line {node.lineno}: calls {called}")
        if called.startswith("mlflow.") and called.endswith(".load_model"):
            found.append(f"line {node.lineno}: {called} may unpickle")
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            found.append(f"line {node.lineno}: {called}")
    return found


def _named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def test_no_code_unpickles() -> None:
    assert len(files()) > 100
    assert {_named(path): found for path in files() if (found := complaints(path))} == {}


def test_the_scan_sees_what_it_is_for(tmp_path: Path) -> None:
    text = "import joblib\nimport torch, numpy as np\nfrom pickle import loads\n"
    text += "torch.load('a')\ntorch.load('a', weights_only=False)\nnp.load('a')\n"
    text += "torch.load('a', weights_only=True)\nnp.load('a', allow_pickle=False)\n"
    (tmp_path / "bad.py").write_text(text)
    assert len(complaints(tmp_path / "bad.py")) == 5


WATCHED = """
import pickle, sys
import numpy as np
watched = []
for name in ("load", "loads", "Unpickler"):
    real = getattr(pickle, name)
    def spy(*args, real=real, **named):
        frame, callers = sys._getframe(1), []
        while frame is not None:
            callers.append(frame.f_code.co_filename)
            frame = frame.f_back
        if not any("importlib" in name for name in callers):
            ours = (n for n in callers if n.startswith(sys.argv[3]) and "site-packages" not in n)
            watched.append(next(ours, ""))
        return real(*args, **named)
    setattr(pickle, name, spy)
from pathlib import Path
from paretune.deploy.source import choose, open_source
from paretune.deploy.bundle import copy_bundle, read_bundle, write_bundle
from paretune.deploy.check import Checked
from paretune.deploy.manifest import make_manifest
from paretune.deploy.verify import rerun
study, out = Path(sys.argv[1]), Path(sys.argv[2])
opened = open_source(study)
point = choose(opened, None, "size_bytes", None)
model = opened.fetch(point.evaluation.artifact, out)
manifest = make_manifest(opened, point, Checked(point.evaluation, None, None, None))
write_bundle(out / "m", model, manifest, point.plan.to_json(), "card", None)
copy_bundle(out / "m", out / "n")
rerun(out / "n", read_bundle(out / "n").manifest)
assert not any(watched), watched
bad = out / "bad.npy"
np.save(bad, np.array([object], dtype=object))
code = compile("np.load(bad, allow_pickle=True)", sys.argv[3] + "/bad.py", "exec")
exec(code)  # the watch sees what it is for
print(watched)
"""


def test_nothing_is_unpickled_on_the_way(digits_study: Path, tmp_path: Path) -> None:
    """Study, choice, bundle, copy and check, with every door of pickle watched."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(digits_study), str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == str([f"{ROOT}/bad.py"]), done.stdout + done.stderr
