"""The pages in a real headless Chromium that can reach nothing but this machine."""

import re
import time
from pathlib import Path

import pytest
from chromium import Chromium

pytestmark = pytest.mark.browser

PLACE = """(() => {{
  const plot = document.getElementById('{view}');
  for (const trace of plot._fullData) {{
    const i = trace.customdata ? Array.from(trace.customdata).indexOf({number}) : -1;
    if (i < 0) continue;
    const box = plot.getBoundingClientRect(), size = plot._fullLayout._size;
    return [box.left + size.l + plot._fullLayout.xaxis.d2p(trace.x[i]),
            box.top + size.t + plot._fullLayout.yaxis.d2p(trace.y[i])];
  }}
}})()"""
LATENCY, SIZE = "view-latency_ms", "view-size_bytes"
IN_VIEW = "!!document.elementFromPoint({x}, {y})?.closest('#view-latency_ms .nsewdrag')"
SAYING = """(() => {
  const said = [...document.querySelectorAll('.hovertext')].map(t => t.textContent.match(/\\d+/));
  return said.length === 2 && said[0][0] === said[1][0] && said[0][0];
})()"""  # the trial that both views speak of
BOX = "document.querySelector('#{view} .nsewdrag').getBoundingClientRect().toJSON()"
DRAWN = "document.body.dataset.drawn === 'yes'"


def hover_texts(browser: Chromium, view: str) -> str:
    script = f"[...document.querySelectorAll('#{view} .hovertext')].map(t => t.textContent).join()"
    return str(browser.evaluate(script))


def layers_shown(browser: Chromium) -> list[str]:
    script = (
        "[...document.querySelectorAll('[data-layers]:not([hidden])')].map(p => p.dataset.layers)"
    )
    return list(browser.evaluate(script))


def test_the_front_page_draws_and_links_its_views_without_a_network(
    digits_study: Path, tmp_path: Path
) -> None:
    from paretune.trackers.study import Study

    with Study.open(digits_study) as study:
        front = study.front()
    seen, members = set(), {point.number for point in front}
    with Chromium(tmp_path / "profile") as browser:
        browser.open((digits_study / "front.html").as_uri(), DRAWN)
        assert browser.evaluate("document.querySelectorAll('.main-svg').length") >= 4
        for point in front:
            x, y = browser.evaluate(PLACE.format(view=LATENCY, number=point.number))
            if not browser.evaluate(IN_VIEW.format(x=x, y=y)):
                continue
            browser.hover(x, y)
            number = int(browser.wait(SAYING, 10))  # that of the nearest, of several in one place
            for view in (LATENCY, SIZE):
                assert front[number].summary in hover_texts(browser, view)
            time.sleep(0.4)  # two clicks within 0.3 s are a double click
            browser.click(x, y)
            browser.wait(f"chosen === {number}", 10)
            if number in members:
                row = browser.evaluate("document.querySelector('tr.found').id")
                assert row == f"trial-{number}"
                assert layers_shown(browser) == [str(number)]
                assert browser.evaluate("document.getElementById('choose').value") == str(number)
                seen.add(number)
            else:  # a dominated one in the same place
                said = browser.evaluate("document.getElementById('chosen').textContent")
                assert said.startswith(f"Trial {number} is not on the front")
            browser.hover(x, 5)
            browser.wait("document.querySelectorAll('.hovertext').length === 0", 10)
        assert seen
        assert browser.errors == []
        outside = [a for a in browser.requests if not a.startswith(("file:", "data:", "blob:"))]
        assert outside == []
    source = (digits_study / "front.html").read_text(encoding="utf-8")
    fetched = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\S+", source)
    assert fetched == []


def test_a_selection_in_one_view_is_a_selection_in_the_other(
    digits_study: Path, tmp_path: Path
) -> None:
    with Chromium(tmp_path / "profile") as browser:
        browser.open((digits_study / "front.html").as_uri(), DRAWN)
        numbers = browser.evaluate(
            f"[...document.getElementById('{LATENCY}').data.filter(t => t.name === 'front')[0]"
            ".customdata]"
        )
        first = {"points": [{"customdata": numbers[0]}]}
        browser.evaluate(f"document.getElementById('{LATENCY}').emit('plotly_selected', {first})")
        marked = browser.wait(
            f"(() => {{const t = document.getElementById('{SIZE}').data"
            ".filter(t => t.name === 'front')[0];"
            "return t.selectedpoints && t.selectedpoints.map(i => t.customdata[i])})()",
            10,
        )
        assert marked == [numbers[0]]


def test_the_narrow_page_begins_with_the_picture(digits_study: Path, tmp_path: Path) -> None:
    with Chromium(tmp_path / "profile", (640, 1600)) as browser:
        browser.open((digits_study / "front.html").as_uri(), DRAWN)
        top = "document.querySelector('{}').getBoundingClientRect().top"
        picture = browser.evaluate(top.format("#view-latency_ms"))
        assert picture < 400  # on the first screen
        shown = "[...document.querySelectorAll('table')].find(t => t.offsetParent)"
        assert picture < browser.evaluate(f"{shown}.getBoundingClientRect().top")
        boxes = [
            browser.evaluate(f"document.getElementById('{v}').getBoundingClientRect().toJSON()")
            for v in (LATENCY, SIZE)
        ]
        assert boxes[1]["top"] >= boxes[0]["bottom"] and boxes[0]["width"] > 560
        assert browser.evaluate("document.documentElement.scrollWidth") <= 640


def test_a_page_that_turns_dark_keeps_its_links_its_zoom_and_its_chosen_point(
    digits_study: Path, tmp_path: Path
) -> None:
    from paretune.trackers.study import Study

    with Study.open(digits_study) as study:
        number = next(iter(study.front())).number
    size = f"document.getElementById('{SIZE}')"
    ink = f"{size}._fullLayout.font.color"
    ring = f"{size}.data.find(t => t.name === 'chosen').x[0]"
    span = f"{size}._fullLayout.yaxis.range.join()"
    with Chromium(tmp_path / "profile") as browser:

        def turn(scheme: str) -> None:
            wanted = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=wanted)

        turn("light")
        browser.open((digits_study / "front.html").as_uri(), DRAWN)
        browser.evaluate(f"choose({number}, false)")
        whole, box = browser.evaluate(span), browser.evaluate(BOX.format(view=SIZE))
        for kind, share in (("Pressed", 0.3), ("Moved", 0.5), ("Moved", 0.7), ("Released", 0.7)):
            x, y = box["x"] + share * box["width"], box["y"] + share * box["height"]
            mouse = {"type": f"mouse{kind}", "button": "left", "buttons": 1, "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", **mouse, x=x, y=y)
        browser.wait(f"{span} !== '{whole}'", 10)
        zoomed, light, place = (browser.evaluate(what) for what in (span, ink, ring))
        assert place is not None
        turn("dark")
        browser.wait(f"{ink} !== '{light}'", 10)
        browser.wait(f"{ring} === {place}", 10)
        assert browser.evaluate(span) == zoomed
        assert browser.evaluate(f"{size}._context.displaylogo") is False
        browser.evaluate(f"{size}.emit('plotly_click', {{points: [{{customdata: -7}}]}})")
        assert browser.evaluate("chosen") == -7  # it still hears clicks
        turn("light")
        browser.wait(f"{ink} === '{light}'", 10)
        assert browser.errors == []
