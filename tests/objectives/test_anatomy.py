"""The per-layer picture: what the files say, and what the plan says where there are none."""

import json

from paretune.objectives.anatomy import Anatomy, FileAnatomy, anatomy
from paretune.objectives.layers_table import layers_table, layers_title
from paretune.spaces.plan import CompressionPlan, LayerChoice
from paretune.targets.onnx_layers import FileLayer

FULL = CompressionPlan({"a": 16}, {"a": LayerChoice(), "b": LayerChoice()})
PLAN = CompressionPlan({"a": 12}, {"a": LayerChoice(8, 8), "b": LayerChoice(8, 8, "svd", (3,))})
BEFORE = FileAnatomy(
    [FileLayer("a", ((16, 3, 3, 3),), 32, 1728), FileLayer("b", ((10, 16),), 32, 640)],
    3000,
    {"a": 0.4, "b": 0.1},
    0.1,
)
AFTER = FileAnatomy(
    [FileLayer("a", ((12, 3, 3, 3),), 8, 324), FileLayer("b", ((3, 12), (10, 3)), 8, 66)],
    1000,
    {"a": 0.2},
    0.3,
)


def test_layers_and_the_rest_make_the_whole_file() -> None:
    found = anatomy(PLAN, FULL, AFTER, BEFORE, "by hand")
    a, b = found.layers
    assert (a.kept, a.full, a.bits, a.size_bytes, a.full_bytes) == (12, 16, 8, 324, 1728)
    assert (b.kept, b.full, b.rank, b.size_bytes) == (10, 10, "svd 3", 66)  # of the last part
    assert found.rest_bytes == 1000 - 324 - 66 and found.size_bytes == 1000
    assert (a.ms, b.ms, found.ms) == (0.2, 0.0, 0.5)
    assert a.changed and b.changed
    assert Anatomy.from_json(json.loads(json.dumps(found.to_json()))) == found
    title = layers_title("Trial 3", found)
    assert title == (
        "Trial 3: 2 of 2 layers in int8, 1 with fewer channels, 1 factorised; "
        "a is the largest (32 %), a the slowest (40 % of the time)"
    )
    page = layers_table(found)
    assert "12 of 16" in page and "200 µs <small>40 %" in page and "svd 3" in page


def test_without_files_the_plan_itself_is_shown() -> None:
    found = anatomy(PLAN, FULL)
    assert [(x.name, x.kept, x.full, x.bits) for x in found.layers] == [
        ("a", 12, 16, 8),
        ("b", None, None, 8),
    ]
    assert found.size_bytes is None and found.ms is None
    assert "share of the file" not in layers_table(found)
    untouched = anatomy(FULL, FULL)
    assert not any(layer.changed for layer in untouched.layers)
    assert layers_title("Trial 0", untouched) == "Trial 0: no layer changed"
