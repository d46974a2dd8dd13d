"""Code that a user names: ``module:callable`` or ``file.py:callable``, imported and looked up.

It is trusted code, run as such; nothing else that comes from a file is.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, nearest

_OWN_FOLDER = Path(__file__).resolve().parent.parent


def is_code(spec: str) -> bool:
    """Whether ``spec`` has the form ``module:callable``, and is none of the reserved words."""
    return ":" in spec and not spec.startswith("torchvision:")


def load_callable(spec: str, where: str, folder: Path | None = None) -> Callable[..., Any]:
    """The callable that ``spec`` names.

    spec: ``package.module:callable`` or ``path/file.py:callable``; a relative file starts from
    ``folder``, and modules beside the file or in ``folder`` can be imported.
    Raises InputError (at ``where``) when the module, the file or the name is missing, when the code
    raises while it is imported, or when the name is not callable.
    """
    origin, colon, name = spec.rpartition(":")
    if not colon or not origin or not name:
        raise InputError(where, f"{spec!r:.200} is not module:callable", "or file.py:callable")
    if folder is not None:
        _make_importable(folder)
    module = _load_file(origin, where, folder) if origin.endswith(".py") else _load(origin, where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if callable(getattr(found, n, None)) and n[0] != "_"]
            raise InputError(where, f"{origin!r} has no {part!r}", _short(nearest(part, known)))
        found = getattr(found, part)
    if not callable(found):
        raise InputError(where, f"{spec!r} is a {type(found).__name__}, not a callable", "")
    return found  # type: ignore[no-any-return]


def run_code(
    function: Callable[..., Any], spec: str, where: str, /, *args: Any, **named: Any
) -> Any:
    """Call a user's function; whatever it raises becomes one InputError line."""
    try:
        return function(*args, **named)
    except InputError as error:
        raise InputError(where, f"{spec!r} refused: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(where, f"{spec!r} raised {last_line(error)}", "correct it") from error


def last_line(error: BaseException) -> str:
    """``"ValueError: bad depth"``: an error's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _load(name: str, where: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(where, f"{name!r:.200} is not a module's name", "write package.module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                where, f"there is no module {error.name!r}", "install it, or name file.py:callable"
            ) from error
        raise InputError(where, f"importing {name!r} raised {last_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(where, f"importing {name!r} raised {last_line(error)}") from error


def _load_file(text: str, where: str, folder: Path | None) -> ModuleType:
    path = Path(folder or Path.cwd(), text).resolve()
    if not path.is_file():
        raise InputError(where, f"no such file {str(path)!r}", "correct the path")
    state = path.stat()
    key = f"{path}:{state.st_mtime_ns}:{state.st_size}".encode()
    name = f"paretune_user_{path.stem}_{hashlib.sha256(key).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(where, f"{str(path)!r} cannot be imported", "name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):
            raise
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        raise InputError(where, f"importing {text!r} raised {last_line(error)}{line}") from error
    return module


def _make_importable(folder: Path) -> None:
    """Append a folder to sys.path, but never paretune's own (it would load a second copy)."""
    folder = folder.resolve()
    if folder != _OWN_FOLDER and str(folder) not in sys.path:
        sys.path.append(str(folder))


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."
