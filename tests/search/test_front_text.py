"""``paretune front``, ``compare`` and ``report`` on a real study."""

import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from paretune import cli
from paretune.errors import InputError
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.front import ParetoFront
from paretune.objectives.further import measured_on
from paretune.objectives.objective import Objective
from paretune.objectives.table import ERRORS, MEASURED, PLAN, STANDING
from paretune.search.compare import compare
from paretune.search.front_table import bar, front_table
from paretune.search.report import front_text
from paretune.spaces.plan import CompressionPlan
from paretune.trackers.progress import quiet
from paretune.trackers.study import Study


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setenv("PARETUNE_QUIET", "")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["paretune", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        return int(ended.value.code or 0), found.out + found.err

    return call


def test_columns_are_the_documented_ones(digits_study: Path) -> None:
    with Study.open(digits_study) as study:
        front = study.front()
        table = pd.read_csv(io.StringIO(front_text(study, format="csv")))
        data = json.loads(front_text(study, format="json"))
    names = list(table.columns)
    assert names[: len(STANDING)] == list(STANDING) and names[-len(PLAN) :] == list(PLAN)
    assert [n for n in names if n in MEASURED] == list(MEASURED)
    assert [n for n in names if n in ERRORS] == list(ERRORS)
    assert data["version"] == 1
    assert (
        [p["number"] for p in data["points"]] == list(table["number"]) == [p.number for p in front]
    )


def test_several_targets_have_a_line_each_in_the_columns_of_one() -> None:
    """One of them names the trial and the plan; shares are of the target's own baseline."""
    targets = ("onnxruntime-cpu", "openvino-cpu")

    def evaluation(kept: int, *measured: tuple[float, float, float, float]) -> Evaluation:
        values: dict[str, float] = {"macs": 1000.0}
        for target, (accuracy, drop, latency_ms, share) in zip(targets, measured, strict=True):
            own = {"accuracy": accuracy, "accuracy_drop": drop, "latency_ms": latency_ms}
            values |= measured_on(target, {**own, "latency_ratio": share}, {})[0]
        return Evaluation(CompressionPlan({"g": kept}, {}), "measure", values)

    objectives = [
        Objective(f"{name}_{end}", {"target": target})
        for name in ("accuracy", "latency_ms")
        for target, end in zip(targets, ("onnxruntime_cpu", "openvino_cpu"), strict=True)
    ]
    base = evaluation(8, (0.9, 0.0, 2.0, 1.0), (0.89, 0.0, 3.0, 1.0))
    found = evaluation(4, (0.88, 0.02, 1.0, 0.5), (0.885, 0.005, 1.2, 0.4))
    front = ParetoFront([(7, found)], objectives, (), base)
    for width in (80, 120):
        console = Console(file=io.StringIO(), width=width)
        console.print(front_table(front, list(front), width))
        lines = [line.split() for line in console.file.getvalue().splitlines()]
        texts = [[word for word in line if not set(word) & set("█▏▎▍▌▋▊▉")] for line in lines]
        assert texts[0][:5] == ["trial", "target", "Accuracy", "points", "Latency"]
        assert texts[1][:7] == ["base", targets[0], "90.00", "%", "2.00", "ms", "1.00"]
        assert texts[2] == [targets[1], "89.00", "%", "3.00", "ms", "1.00"]
        assert texts[3][:8] == ["7", targets[0], "88.00", "%", "−2.00", "1.00", "ms", "0.50"]
        assert texts[4] == [targets[1], "88.50", "%", "−0.50", "1.20", "ms", "0.40"]
        assert "keep" in texts[3] and len(texts) == 5


def test_best_is_one_point_and_says_how_to_deliver_it(digits_study: Path) -> None:
    with Study.open(digits_study) as study:
        front = study.front()
        smallest = min(
            (p for p in front.points if p.trusted and p.values["accuracy_drop"] <= 0.02),
            key=lambda p: (p.values["size_bytes"], not p.front),
        )
        text = front_text(study, "accuracy_drop <= 2pt", best="size_bytes")
        assert f"paretune pull {digits_study} --trial {smallest.number} --to OUT" in text
        knee = json.loads(front_text(study, format="json", best="knee"))["points"]
        assert [p["number"] for p in knee] == [front.knee().number]
        with pytest.raises(InputError, match="a page shows every point"):
            front_text(study, format="html", best="knee")


def test_bars_are_as_long_as_the_share() -> None:
    assert [len(bar(share)) for share in (0.0, 0.5, 1.0, 1.4)] == [0, 4, 8, 9]
    assert bar(0.5) == "████" and bar(1.4) == "████████+" and bar(None) == ""
    assert bar(0.5625) == "████▌"


def test_compare_two_points_and_two_searches(digits_study: Path) -> None:
    with Study.open(digits_study) as study:
        front = study.front()
        a, b = [p.number for p in front][:2]
        unconfirmed = [p.number for p in front.points if p.rung != "confirm"]
    data = json.loads(compare(digits_study, [str(a), str(b)], "json"))
    sizes = next(row for row in data["values"] if row["name"] == "size_bytes")
    assert (sizes["a"], sizes["b"]) == (
        front[a].values["size_bytes"],
        front[b].values["size_bytes"],
    )
    assert data["dominates"] == ""  # both are on the front
    for other in unconfirmed[:1]:  # a short search may have confirmed all
        text = " ".join(compare(digits_study, [str(a), str(other)]).split())
        assert "values of the search data" in text
    same = json.loads(compare(digits_study, [str(digits_study)], "json"))
    assert (
        same["a"]["hypervolume"] == same["b"]["hypervolume"] == pytest.approx(front.hypervolume())
    )
    assert same["a"]["beaten"] == 0 and same["warnings"] == []
    with pytest.raises(InputError, match="compare DIR A B"):
        compare(digits_study, ["1"])


def test_commands_write_pictures_and_reports_without_colours(
    run, digits_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "130"}.items():
        monkeypatch.setenv(name, value)
    with Study.open(digits_study) as study:
        assert "\x1b[3" in front_text(study)  # a colour
        code, text = run("--no-color", "--quiet", "front", str(digits_study))
        assert code == 0 and "█" in text
        assert "\x1b[3" not in front_text(study)  # from here on, in this process
        assert quiet()
    picture = tmp_path / "front.svg"
    assert run("front", str(digits_study), "--format", "svg", "--out", str(picture))[0] == 0
    assert picture.read_bytes().startswith(b"<?xml")
    code, text = run("front", str(digits_study), "--format", "png", "--out", "front.svg")
    assert code == 2 and "'front.svg' is no .png file; name it front.png" in text
    report = tmp_path / "report.html"
    assert run("report", str(digits_study), "--out", str(report), "--best", "knee")[0] == 0
    assert "Measured on" in report.read_text(encoding="utf-8")
