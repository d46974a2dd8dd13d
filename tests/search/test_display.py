"""What a person sees: the opening, a line or a bar for each trial, the front, the end."""

import io
import time

import pytest
from rich.console import Console

from paretune.errors import InputError
from paretune.objectives.evaluation import Evaluation
from paretune.objectives.objective import Objective
from paretune.search.display import Opening, duration, make_display, number
from paretune.search.events import Event, Progress
from paretune.trackers.study import BASELINE, Ask, Study

OPENING = Opening(4**60, 60, "nsga2", 2)
OBJECTIVES = [Objective("accuracy", {}), Objective("size_bytes", {}), Objective("latency_ms", {})]


@pytest.fixture
def study(fakes, tmp_path):
    """A baseline of 10 s and three trials, the last one failed."""
    space = fakes.ToySpace()
    with Study.create(tmp_path / "s", {"toy": 1}, name="toy", objectives=OBJECTIVES) as study:
        base = fakes.measured(space.plan({}))
        study.add(BASELINE, Evaluation(base.plan, "measure", base.values, seconds={"score": 10.0}))
        for index, genotype in enumerate(space.presets()):
            ask = Ask(index, space.plan(genotype), genotype, {}, {})
            study.begin(ask, "me")
            failed = Evaluation.failure(ask.plan, "layer [l0]: cannot be exported")
            study.finish(index, failed if index == 2 else fakes.measured(ask.plan))
        yield study


def replay(study, display):
    progress = Progress(10)
    with display:
        display.on_event(Event("baseline", progress, BASELINE, study.baseline, 10.0))
        for done, row in enumerate(study.rows("measure"), 1):
            progress = Progress(10, done, done // 3, 0, 2.0 * done)
            display.on_event(Event("trial", progress, row.number, row.evaluation, 2.0))
        shown = display.console.file.getvalue()
        display.on_event(Event("confirming", progress, note="2 points of the front"))
        display.on_event(Event("confirmed", progress, 0, study.rows()[0].evaluation))
        display.on_event(Event("ended", progress, note="the budget is spent"))
    return shown, display.console.file.getvalue()


def test_plain_says_one_line_a_trial(study):
    console = Console(file=io.StringIO(), width=60)
    _, text = replay(study, make_display("auto", study, OPENING, console))
    lines = text.splitlines()
    assert lines[0] == "baseline: accuracy 90.00 %, file size 1.00 kB, latency 1.00 ms"
    assert lines[1] == "space: 10^36 plans in 60 parameters"
    assert lines[2] == "budget: 10 trials, nsga2, 2 workers; about 50 s for 10 trials"
    assert lines[3].startswith("[1/10] trial 0: ")
    assert lines[5] == "[3/10] trial 2: failed: layer [l0]: cannot be exported (2.0 s)"
    assert "the budget is spent: 3 trials, 1 failed" in lines


def test_the_sampler_that_stands_in_is_named(study):
    study.put("unguided", "too little time")
    guided = Opening(10**36, 60, "guided", 2)
    console = Console(file=io.StringIO(), width=60)
    _, text = replay(study, make_display("plain", study, guided, console))
    assert "budget: 10 trials, nsga2, 2 workers" in text


def test_live_shows_bar_front_and_last_failure(study):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    display = make_display("auto", study, OPENING, console)
    _, text = replay(study, display)
    assert "space: 10^36 plans" in text and "the budget is spent" in text
    assert "what was changed" in text and "█" in text
    console = Console(file=io.StringIO(), width=120)
    display._bar.update(display._task, description="trials", total=10, completed=3, note="n")
    console.print(display)
    drawn = console.file.getvalue()
    assert "trial 2 failed: layer [l0]: cannot be exported" in drawn and "3/10" in drawn


def test_live_tells_the_time_left(study):
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    display = make_display("live", study, OPENING, console)
    with display:
        row = study.rows()[0]
        display.on_event(Event("trial", Progress(10, 4, 0, 2, 60.0), 0, row.evaluation))
        assert display._bar.tasks[0].fields["note"] == "about 3 min left"


def test_quiet_says_nothing(study):
    console = Console(file=io.StringIO())
    assert replay(study, make_display("quiet", study, OPENING, console)) == ("", "")


def test_unknown_display(study):
    with pytest.raises(InputError, match="unknown display 'qiet'; did you mean 'quiet'"):
        make_display("qiet", study, OPENING)


def test_numbers_and_durations():
    assert [number(n) for n in (9, 1200, 3_100_000, 10**36)] == [
        "9",
        "1,200",
        "3.1 million",
        "10^36",
    ]
    texts = [duration(s) for s in (0.2, 40, 540, 7800)]
    assert texts == ["1 s", "40 s", "9 min", "2 h 10 min"]
    assert Progress(10, 4, 0, 4).seconds_left is None
    assert Progress(10, 8, 0, 4, 8.0).seconds_left == pytest.approx(4.0)


def test_drawing_the_front_takes_a_small_share_of_the_time(study, monkeypatch):
    """A front of thousands of points takes long to draw: then it is drawn less often."""
    from paretune.search import display as module

    drawn = []
    monkeypatch.setattr(module, "_FRONT_EVERY_S", 0.0)
    monkeypatch.setattr(module, "live_table", lambda *_: drawn.append(time.sleep(0.02)) or "")
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with make_display("live", study, OPENING, console) as display:
        begin, row = time.monotonic(), study.rows()[0]
        while time.monotonic() < begin + 0.3:
            display.on_event(Event("trial", Progress(10, 1), 0, row.evaluation))
    assert len(drawn) == 1
