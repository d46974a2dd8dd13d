"""The picture for papers: drawn without a browser, the same each time, readable text."""

import re
import struct
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from small_front import search

from paretune.errors import EnvironmentFault, InputError
from paretune.objectives.answers import conclusion
from paretune.objectives.expression import Expression
from paretune.objectives.figure import views
from paretune.objectives.front import ParetoFront
from paretune.objectives.look import NIGHT
from paretune.objectives.page import page_file
from paretune.objectives.size_classes import MOST, VIRIDIS, class_of, size_classes
from paretune.objectives.static_figure import _draw, picture, write_picture

CLOSE = [
    (0.9, 0.234, 1.307),
    (0.8982, 0.242, 1.222),
    (0.8968, 0.234, 1.286),
    (0.8968, 0.238, 1.248),
    (0.896, 0.234, 1.219),
    (0.894, 0.225, 1.25),
    (0.8938, 0.226, 1.206),
    (0.8925, 0.205, 1.222),
    (0.8922, 0.207, 1.218),
    (0.8902, 0.225, 1.162),
    (0.8892, 0.224, 1.211),
    (0.8862, 0.205, 1.308),
    (0.875, 0.3, 1.4),
]  # those of a real search
POINTS = [(0.9 - 0.004 * i, 1.0 - 0.1 * i, 2.0 - 0.15 * i) for i in range(1, 9)]


def test_svg_keeps_its_text_and_repeats() -> None:
    front = search(POINTS, error=0.002)
    text = picture(front, "svg").decode()
    assert conclusion(front) in re.sub(r"<[^>]+>", "", text)
    assert "Latency, ms for one batch" in text and "Accuracy, %" in text
    assert picture(front, "svg").decode() == text
    assert "http://" not in re.sub(
        r'xmlns(:\w+)?="[^"]+"|<!DOCTYPE[^>]+>|rdf:\w+="[^"]+"', "", text
    )


def test_png_has_pixels(tmp_path: Path) -> None:
    write_picture(tmp_path / "front.png", search(POINTS))
    data = (tmp_path / "front.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1400 and height > 600
    assert [p.name for p in tmp_path.iterdir()] == ["front.png"]


def test_it_is_drawn_with_what_there_is() -> None:
    for front in (search([]), search(POINTS[:1]), ParetoFront([], search([]).objectives)):
        assert picture(front, "svg").startswith(b"<?xml")


def test_a_label_covers_no_point_of_the_front() -> None:
    """Measured in the picture as it is drawn."""
    figure = Figure(figsize=(9.6, 4.3), dpi=160, layout="constrained")
    front = search(CLOSE, error=0.0045)
    _draw(figure, front)
    FigureCanvasAgg(figure).draw()
    for panel, axis in zip(figure.axes, views(front), strict=True):
        (note,) = [t for t in panel.texts if t.get_text().startswith("trial")]
        words = Text.get_window_extent(note)  # without the line to the point
        for p in front:
            at = axis.at(p.values[axis.name]), 100 * p.values["accuracy"]
            x, y = panel.transData.transform(at)
            assert not words.padded(7).contains(x, y), (axis.name, p.number)


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'front.gif' is no png or svg"):
        write_picture(tmp_path / "front.gif", search(POINTS))
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_picture(tmp_path / "missing" / "front.png", search(POINTS))


def test_size_classes_are_few_apart_and_hold_every_point() -> None:
    wide = search([(0.8, 0.02 * 1.3**i, 1.0) for i in range(16)])
    classes = size_classes(wide)
    assert 2 <= len(classes) <= MOST
    assert len({c.colour for c in classes}) == len({c.symbol for c in classes}) == len(classes)
    assert all(class_of(wide, p, classes) is not None for p in wide.points)
    close = size_classes(search([(0.8, 0.23, 1.0), (0.81, 0.25, 1.0)]))
    assert [c.label for c in close] == ["0.2–0.3×"]  # a few per cent are no difference in colour


def test_what_can_stand_on_no_front_has_no_class() -> None:
    front = search([(0.8, 0.23, 1.0), (0.5, 0.07, 0.9)])
    limited = ParetoFront(
        [(p.number, p.evaluation) for p in front.points],
        front.objectives,
        (Expression.parse("accuracy >= 0.7"),),
        front.baseline,
    )
    assert [c.label for c in size_classes(limited)] == ["0.2–0.3×"]


@pytest.mark.parametrize("colours", VIRIDIS.values(), ids=len)
def test_on_a_dark_page_signs_stand_out_and_apart(colours: tuple[str, ...]) -> None:
    """WCAG 2.2's contrast of graphics (1.4.11), against the dark page of page.css."""
    page = re.findall(r"--page: (#[0-9a-f]{6})", page_file("page.css"))[1]
    drawn = [NIGHT.get(colour, colour) for colour in colours]
    assert len(set(drawn)) == len(drawn)
    assert min((light(c) + 0.05) / (light(page) + 0.05) for c in drawn) >= 3


def light(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
