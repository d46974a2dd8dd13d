"""What a person sees in MLflow, in a real browser that reaches nothing but this machine."""

import urllib.request
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
from chromium import Chromium
from local_server import LocalServer, free_port

VIEW_STATE = ("viewStateShareKey", "mlflow.sharedViewState", "compareRunSections", "cardHeight")


def test_this_mlflow_still_knows_saved_views() -> None:
    """The saved comparison view is undocumented state of MLflow's page; this says when it ends."""
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    missing = set(VIEW_STATE)
    for path in scripts.glob("*.js"):
        text = path.read_text(encoding="utf-8", errors="replace")
        missing -= {word for word in missing if word in text}
    assert not missing, f"MLflow {mlflow.__version__} has no {missing}: drop shared_view()"


@pytest.mark.slow
@pytest.mark.browser
def test_open_filter_compare_picture_and_hover(digits_study: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from paretune.objectives.answers import conclusion
    from paretune.trackers.mlflow_tracker import sync
    from paretune.trackers.mlflow_ui import ui_command
    from paretune.trackers.mlflow_view import shared_view
    from paretune.trackers.study import Study

    with Study.open(digits_study) as study:
        settings = study.job["tracker"]["mlflow"]
        report = sync(study, settings["uri"], settings["experiment"])
        front = study.front()
        key, _ = shared_view(study, front)
    link = MlflowClient(settings["uri"])
    experiment = link.get_experiment_by_name(report.experiment).experiment_id
    port, folder = free_port(), tmp_path / "ui"
    folder.mkdir()
    command, environment = ui_command(digits_study, port)
    with (
        LocalServer(command, port, folder, environment) as server,
        Chromium(tmp_path / "profile", (1400, 1500)) as browser,
    ):
        pages = f"{server.uri}/#/experiments/{experiment}/runs"

        def says(text: str, seconds: float = 90.0) -> None:
            browser.wait(f"document.body.innerText.includes({text!r})", seconds)

        browser.open(f"{pages}/{report.run_id}")  # title and description begin with the answer
        says(conclusion(front))
        titles = "[...document.querySelectorAll('h1, h2, h3')]"
        high = "x => x.getBoundingClientRect().bottom < 300"
        words = f"x.innerText.includes({conclusion(front)!r})"
        browser.wait(f"{titles}.filter({high}).some(x => {words})")
        says("Baseline")
        says("hypervolume")
        only = quote("tags.pareto = 'true'")
        browser.open(f"{pages}?searchFilter={only}")
        says(f"{len(front) + 1} matching runs")  # with the search that they belong to
        browser.open(f"{pages}?viewStateShareKey={key}&compareRunsMode=CHART")
        says("Pareto front")
        browser.wait("document.querySelectorAll('.js-plotly-plot').length >= 2")
        says(f"{len(front)} matching runs")
        browser.open(f"{pages}/{report.run_id}/artifacts/front.html")
        browser.wait("document.querySelector('iframe') !== null")
        picture = f"{server.uri}/get-artifact?path=front.html&run_uuid={report.run_id}"
        assert all(a.startswith((server.uri, "data:", "blob:", "about:")) for a in browser.requests)
        saved = tmp_path / "front.html"
        saved.write_bytes(urllib.request.urlopen(picture, timeout=30).read())
        browser.open(saved.as_uri(), "document.body.dataset.drawn === 'yes'")
        from test_browser import IN_VIEW, LATENCY, PLACE, SAYING

        for point in front:
            x, y = browser.evaluate(PLACE.format(view=LATENCY, number=point.number))
            if browser.evaluate(IN_VIEW.format(x=x, y=y)):
                browser.hover(x, y)
                assert int(browser.wait(SAYING, 10)) in {p.number for p in front.points}
                break
        else:
            pytest.fail("no point of the front is in view")
