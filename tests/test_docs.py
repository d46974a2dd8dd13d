"""The documentation: reference pages are current, links lead somewhere, code blocks run.

A fenced block with a title is a file; ``console`` blocks are commands (``$ ``) and, beside them,
what they print; ``python`` blocks of a page run one after the other; ``yaml`` blocks are parts of a
job. What is not run says so in the page: ``*Not run by the tests ...*`` before the block, or in the
page's first lines for the whole page.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_server import free_port

from paretune import cli
from paretune.tasks.job import load_job
from paretune.tasks.yaml_source import parse_yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r"^```(\w*)(?: +title=\"([^\"]+)\")?$")
NOT_RUN = re.compile(r"^\*Not run by the tests")
MADE = "<!-- Written by docs/generate.py"
MINIMAL = {"name": "a", "task": {"model": "net.py:make", "data": {"kind": "digits"}}}
ALONE = {"tutorial.md"}  # starts in an empty folder
SLOW = {"shipping.md"}  # a model registry; tests/deploy/test_registry.py does the same by default


@dataclass(frozen=True)
class Block:
    kind: str
    title: str | None
    text: str
    line: int
    run: bool

    @property
    def commands(self) -> list[str]:
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    first = next((n for n, line in enumerate(lines) if line.startswith(("## ", "```"))), 0)
    whole = not any(NOT_RUN.match(line) for line in lines[:first])
    found: list[Block] = []
    start: tuple[int, str, str | None] | None = None
    said = ""
    for number, line in enumerate(lines):
        if start is None and (match := FENCE.match(line)):
            start = (number, match[1], match[2])
        elif start is not None and line == "```":
            at, kind, title = start
            text = "\n".join(lines[at + 1 : number]) + "\n"
            found.append(Block(kind, title, text, at + 1, whole and not NOT_RUN.match(said)))
            start = None
        elif start is None and line.strip():
            said = line
    assert start is None, f"{page.name}: a fence is not closed"
    return found


def test_every_page_is_in_the_navigation_or_generated() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w-]+\.md)$", text, re.MULTILINE))
    assert named == {page.name for page in PAGES}


def test_reference_pages_are_current() -> None:
    """``python docs/generate.py`` writes them."""
    made = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
    for name, page in made.items():
        assert (DOCS / name).read_text(encoding="utf-8") == page(), f"run docs/generate.py: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_say_what_they_are(page: Path) -> None:
    known = {"python", "console", "yaml"}
    for block in blocks(page):
        at = f"{page.name}:{block.line}"
        if block.run and block.title is None and MADE not in page.read_text(encoding="utf-8"):
            assert block.kind in known, f"{at}: say what it is, or that it is not run"
        if block.kind == "console" and block.run:
            assert block.commands, f"{at}: no command"
        if block.kind == "python":
            compile(block.text, at, "exec")
        if block.kind == "yaml" and block.run and block.title is None:
            check_part(block.text, at)


def check_part(text: str, at: str) -> None:
    """A part of a job file is right when a job with it is."""
    if not [line for line in text.splitlines() if line.strip() and not line.startswith("#")]:
        return
    part, _ = parse_yaml(text.encode(), at)
    job = {**MINIMAL, **part}
    job["task"] = {**MINIMAL["task"], **part.get("task", {})}
    load_job(job)


def runnable(page: Path) -> bool:
    return any(b.run and (b.kind in ("console", "python") or b.title) for b in blocks(page))


def pages() -> list[object]:
    return [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in PAGES
        if page.name not in ALONE and runnable(page)
    ]


@pytest.mark.parametrize("page", pages())
def test_a_page_runs_in_the_quickstarts_folder(
    page: Path, digits_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "paretune-quickstart"
    shutil.copytree(digits_study.parent, folder)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        at = f"{page.name}:{block.line}"
        if not block.run:
            continue
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.text, at, "exec"), names)
        elif block.kind == "console":
            for command in block.commands:
                code = run(command, folder, monkeypatch)
                assert code == 0, f"{at}: {command} ended with {code}"


def run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A command of paretune in this process, others in a shell."""
    words = shlex.split(command)
    if words[0] == "paretune" and not set(command) & set("|>&"):
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)
    return subprocess.run(["bash", "-c", command], cwd=folder, env=shell(folder)).returncode


def shell(folder: Path) -> dict[str, str]:
    """An environment in which ``paretune``, ``python`` and ``mlflow`` are those of this one."""
    tools = folder / ".bin"
    tools.mkdir(exist_ok=True)
    for name, module in (("paretune", "-m paretune.cli"), ("mlflow", "-m mlflow"), ("python", "")):
        path = tools / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        path.chmod(0o755)
    path = f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [DOCS / name for name in ALONE], ids=lambda page: page.name)
def test_a_page_runs_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    """All of its commands in one shell, as a reader has it."""
    port = str(free_port())
    script = ["set -em", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in blocks(page):
        if block.run and block.title:
            text = block.text.replace("5001", port)
            (tmp_path / block.title).write_text(text, encoding="utf-8")
        elif block.run and block.kind == "console":
            script += block.commands
    text = "\n".join(script).replace("5001", port)
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=shell(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_links_lead_somewhere(tmp_path: Path) -> None:
    """The site as CI builds it: a broken link or anchor fails."""
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name for path in site.glob("*/index.html")}
    assert {page.stem for page in PAGES} - {"index"} <= pages
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//", text), path
