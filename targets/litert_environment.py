"""The Python environment of LiteRT's converter, which pins another torch than ours.

``paretune setup litert`` makes it; conversions run in child processes of its interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import EnvironmentFault, InputError
from ..tasks.image_cache import cache_folder

PACKAGES = ("litert-torch==0.10.0", "ai-edge-litert==2.3.0")
"""What is installed there; the first one decides which torch comes along."""
FOLDER = "PARETUNE_LITERT"
"""The environment variable that names another folder than ``litert`` in the cache."""
STAMP = "paretune-packages.json"  # written when everything is installed
SETUP = "paretune setup litert"


def environment_folder() -> Path:
    """Where the environment is, or would be made."""
    named = os.environ.get(FOLDER)
    return Path(named).expanduser().absolute() if named else cache_folder() / "litert"


def converter_python(folder: Path | None = None) -> Path:
    """The environment's interpreter.

    Raises InputError in one line with the command that makes it, where it is missing or of other
    versions.
    """
    folder = environment_folder() if folder is None else folder
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    try:
        packages = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        packages = None
    if packages is None or not python.exists():
        raise InputError(
            "target 'litert'", f"its converter's environment is missing ({folder})", SETUP
        )
    if packages != [*PACKAGES]:
        raise InputError(
            "target 'litert'", f"its converter's environment holds {packages!r}", SETUP
        )
    return python


def set_up(folder: Path | None = None, say: Callable[[str], object] = print) -> Path:
    """Make the environment, or make it anew where its packages are others; its folder.

    Takes minutes and some gigabytes (its torch); by ``uv`` where it is on PATH, else by pip, with
    their own settings (e.g. PIP_INDEX_URL). Nothing of this interpreter's packages is touched.
    Raises EnvironmentFault with the last line that they said.
    """
    folder = environment_folder() if folder is None else folder
    try:
        converter_python(folder)
        say(f"{folder}: up to date")
        return folder
    except InputError:
        pass
    _check_ours(folder)
    say(f"{folder}: installing {' '.join(PACKAGES)} (minutes)")
    shutil.rmtree(folder, ignore_errors=True)
    name = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    python = str(folder / name)
    uv = shutil.which("uv")
    if uv:
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], folder)
        _run([uv, "pip", "install", "--quiet", "--python", python, *PACKAGES], folder)
    else:
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        _run([python, "-I", "-m", "pip", "install", "--quiet", *PACKAGES], folder)
    (folder / STAMP).write_text(json.dumps([*PACKAGES]), encoding="utf-8")
    say(f"{folder}: ready")
    return folder


def _check_ours(folder: Path) -> None:
    """Whether the folder may be replaced: absent, empty or an environment."""
    if folder.exists() and not (folder / "pyvenv.cfg").exists() and any(folder.iterdir()):
        raise InputError(
            str(folder), "holds other files", f"empty it, or name another folder in {FOLDER}"
        )


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise EnvironmentFault(
            f"{folder}: {Path(command[0]).name} failed ({said[-1][:200]}); mend that and run "
            f"{SETUP!r} again"
        )
