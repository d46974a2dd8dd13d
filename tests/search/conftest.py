"""The toy space and evaluators, as a module and as a factory that workers can name."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parent / "fakes.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paretune_search_fakes", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """tests/search/fakes.py as a module."""
    return sys.modules.get("paretune_search_fakes") or _load()


@pytest.fixture(scope="session")
def factory() -> str:
    """What a pool is given to find the toy evaluator: file.py:callable."""
    return f"{FILE}:toy"


@pytest.fixture(scope="session")
def bench(fakes) -> ModuleType:
    """tests/search/drive.py as a module: toy searches, a pool without processes."""
    spec = importlib.util.spec_from_file_location(
        "paretune_search_drive", FILE.with_name("drive.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def drive(bench):
    """One run of a toy search."""
    return bench.drive


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """tests/search/emulated.py as a module: an emulated network."""
    spec = importlib.util.spec_from_file_location(
        "paretune_search_emulated", FILE.with_name("emulated.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
