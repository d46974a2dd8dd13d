"""paretune: find the best ways to make a trained PyTorch network small and fast, and ship one.

Public names are loaded from their files the first time they are asked for, so that
``import paretune`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read
    from .deploy.pull import pull as pull
    from .errors import ParetuneError as ParetuneError
    from .objectives.evaluation import Evaluation as Evaluation
    from .objectives.front import ParetoFront as ParetoFront
    from .operators.apply import apply as apply
    from .operators.export import export as export
    from .search.run import Search as Search
    from .spaces.discover import discover as discover
    from .spaces.plan import CompressionPlan as CompressionPlan
    from .spaces.space import SearchSpace as SearchSpace
    from .tasks.job import load_job as load_job
    from .tasks.load import load_task as load_task
    from .tasks.task import Task as Task
    from .trackers.study import Study as Study

__version__ = "0.1.0"

_HOME = {
    "CompressionPlan": "spaces.plan",
    "Evaluation": "objectives.evaluation",
    "ParetoFront": "objectives.front",
    "ParetuneError": "errors",
    "Search": "search.run",
    "SearchSpace": "spaces.space",
    "Study": "trackers.study",
    "Task": "tasks.task",
    "apply": "operators.apply",
    "discover": "spaces.discover",
    "export": "operators.export",
    "load_job": "tasks.job",
    "load_task": "tasks.load",
    "pull": "deploy.pull",
}
__all__ = [
    "CompressionPlan",
    "Evaluation",
    "ParetoFront",
    "ParetuneError",
    "Search",
    "SearchSpace",
    "Study",
    "Task",
    "apply",
    "discover",
    "export",
    "load_job",
    "load_task",
    "pull",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its file the first time it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
