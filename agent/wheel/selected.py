"""Which files the wheel of the agent is made of: its own, and some that it shares with paretune.

``paretune_agent`` is a part of the package ``paretune`` under another name: imports are relative,
so the very same files work in both. There is no second copy of the stopwatch to keep alike.
"""

from pathlib import Path

from setuptools.command.build_py import build_py

HERE = Path(__file__).parent.parent
SHARED = ("cpu", "onnx_session", "speed_states", "timing", "timing_result", "token_file", "wire")
OWN = sorted(p.stem for p in HERE.glob("*.py"))
MODULES = {
    "paretune_agent": {"__init__": "__init__.py", "errors": "../errors.py"},
    "paretune_agent.agent": {name: f"{name}.py" for name in OWN},
    "paretune_agent.targets": {n: f"../targets/{n}.py" for n in ("__init__", *SHARED)},
}


class Selected(build_py):
    """Takes the modules named above and no others."""

    def find_package_modules(self, package, package_dir):
        return [(package, module, file) for module, file in MODULES[package].items()]
