"""The picture for papers: drawn without a browser, the same each time, readable text."""

import re
import struct
from pathlib import Path

import pytest
from small_front import search

from paretune.errors import EnvironmentFault, InputError
from paretune.objectives.answers import conclusion
from paretune.objectives.front import ParetoFront
from paretune.objectives.size_classes import MOST, class_of, size_classes
from paretune.objectives.static_figure import picture, write_picture

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
