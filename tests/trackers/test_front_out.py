"""What `paretune front --out` writes is whole, or what was there stays."""

import os

import pytest
from typer.testing import CliRunner

from paretune.cli import app


@pytest.mark.parametrize("kind", ["csv", "json", "html"])
def test_a_file_is_replaced_and_never_rewritten(tmp_path, recorded, kind):
    """A reader that holds the old file goes on reading the old content."""
    recorded.new_study(tmp_path / "s", trials=6).close()
    out, held = tmp_path / f"front.{kind}", tmp_path / "held"
    out.write_text("old")
    os.link(out, held)
    done = CliRunner().invoke(
        app, ["front", str(tmp_path / "s"), "--format", kind, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert held.read_text() == "old" and len(out.read_text()) > 100
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
