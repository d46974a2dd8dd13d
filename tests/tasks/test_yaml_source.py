"""The strict YAML reader: what it takes, what it refuses, and how fast."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paretune.errors import InputError
from paretune.tasks.yaml_source import dump_yaml, parse_yaml, read_yaml

REFUSED = [
    (b"", "job.yaml: the file is empty"),
    (b"# only a comment\n", "the file is empty"),
    (b"~\n", "the file is empty"),
    (b"- a\n- b\n", "job.yaml:1: expected a mapping, got a list"),
    (b"just text\n", "expected a mapping, got 'just text'"),
    (b"a: 1\n---\nb: 2\n", "job.yaml:2: a second document starts here"),
    (b"a: 1\nb: !!python/object/apply:os.system [ls]\n", "job.yaml:2: tag"),
    (b"a: !local 1\n", "tags are not allowed"),
    (b"a: 1\nb: 2\n\na: 3\n", "job.yaml:4: duplicate key 'a', first on line 1"),
    (b"s:\n  t: 1\n  't': 2\n", "job.yaml:3: duplicate key 't', first on line 2"),
    (b"a: &x [1]\nb: *x\n", "job.yaml:1: anchor &x; anchors and aliases are not allowed"),
    (b"a: *x\n", "alias *x"),
    (b"<<: {a: 1}\n", "merge keys are not allowed"),
    (b"a:\n\tb: 1\n", "indent with spaces, not tabs"),
    (b"a: [1, 2\n", "job.yaml:2:1: not valid YAML"),
    (b"a: 'open\n", "not valid YAML"),
    (b"a: 1\nb: \0\n", "job.yaml:2: contains a NUL byte"),
    (b"a: 1\nb: \xff\n", "job.yaml:2: is not UTF-8 text"),
    (b"a: \x07\n", "control character"),
    (b"a: " + b"[" * 40 + b"]" * 40, "nesting deeper than 32"),
    (b"x: " + b"[" * 20000, "nesting deeper than 32"),
    (b"a: " + b"{b: " * 20000, "nesting deeper than 32"),
    (b"lr: 1e-3\n", "write 1.0e-3 (or quote it)"),
    (b"lr: 1.5e3\n", "write 1.5e+3"),
    (b"a: 010\n", "'010' is not a plain decimal number"),
    (b"a: 12:30:45\n", "is not a plain decimal number"),
    (b"a: 0b11\n", "is not a plain decimal number"),
    (b"yes: 1\n", "key 'yes' is not text; quote it"),
    (b"1: a\n", "key '1' is not text"),
    (b"? [a]\n: b\n", "used as a key"),
    (b"a: " + b"9" * 5000, "a number of 5000 characters"),
    (b"a: '" + b"x" * 1_000_001 + b"'", "larger than 1,000,000 bytes"),
]


@pytest.mark.parametrize(("raw", "message"), REFUSED, ids=[m[:30] for _, m in REFUSED])
def test_bad_text_is_refused_with_one_line(raw: bytes, message: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        parse_yaml(raw, "job.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 1


def test_billion_laughs_stops_at_the_first_anchor() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
    )
    with pytest.raises(InputError, match="anchor &a"):
        parse_yaml(bomb.encode(), "job.yaml")


def test_values_and_lines() -> None:
    text = """\
name: "010"
when: 2026-11-22
off: no
""".replace("off:", "'off':")
    data, locate = parse_yaml(
        (text + "n: 1_000\nh: 0x1F\nf: .5\ng: 1.5e+3\nl:\n- a\n-\n  k: ~\ninf: .inf\n").encode(),
        "job.yaml",
    )
    assert data == {
        "name": "010",
        "when": "2026-11-22",
        "off": False,
        "n": 1000,
        "h": 31,
        "f": 0.5,
        "g": 1500.0,
        "l": ["a", {"k": None}],
        "inf": float("inf"),
    }
    assert locate(("l",)) == 8
    assert locate(("l", 0)) == 9
    assert locate(("l", 1, "k")) == 11
    assert locate(("l", 1, "absent", "deeper")) == locate(("l", 1))
    assert locate(("nowhere",)) == 1 == locate()


def test_a_byte_order_mark_is_taken() -> None:
    assert parse_yaml("\ufeffa: ü".encode(), "x")[0] == {"a": "ü"}


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="it is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(InputError, match="cannot be read|no such file"):
        read_yaml("bad\0name")


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=8), _plain, min_size=1, max_size=5), st.booleans())
def test_reads_what_pyyaml_reads(data: dict, flow: bool) -> None:
    """Whatever PyYAML writes and reads back, this reader reads the same."""
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True)
    try:
        ours = parse_yaml(text.encode("utf-8", "surrogatepass"), "x")[0]
    except InputError as error:
        # PyYAML writes anchors for equal objects and leaves the text '1e5' without quotes
        assert any(w in str(error) for w in ("anchor", "UTF-8", "control", "as text"))
        return
    assert ours == yaml.safe_load(text)


_speakable = st.text(max_size=20).filter(lambda t: t.isprintable() or not t.strip("\n\t\0\x85"))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=8), _plain | _speakable, min_size=1, max_size=5))
def test_what_is_dumped_is_read_back_equal(data: dict) -> None:
    text = dump_yaml(data)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in repr(data)) or "\\ud" in text.lower():
        return
    assert parse_yaml(text.encode(), "x")[0] == data
    assert yaml.safe_load(text) == data


def test_words_that_look_like_numbers_are_quoted() -> None:
    data = {"a": "1e5", "b": "no", "c": "010", "d": "~", "e": 1e-05, "1": "x" * 300, "": ["1.10"]}
    assert parse_yaml(dump_yaml(data).encode(), "x")[0] == data


_fragments = st.sampled_from(
    ["a: ", "- ", "{", "}", "[", "]", "\n", "  ", "\t", "&x ", "*x", "!t ", "'", '"', "|", ">", "#"]
    + ["---\n", "...\n", "? ", ": ", "<<: ", "%", "@", "`", "1e3", "010", "~", "\0", "\u2028", ","]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_fragments | st.text(max_size=4), max_size=40).map("".join))
def test_any_text_gives_a_mapping_or_an_input_error(text: str) -> None:
    start = time.process_time()
    try:
        data, _ = parse_yaml(text.encode("utf-8", "surrogatepass"), "x")
        assert isinstance(data, dict)
    except InputError as error:
        assert "\n" not in str(error)
    assert time.process_time() - start < 1


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_mapping_or_an_input_error(raw: bytes) -> None:
    try:
        assert isinstance(parse_yaml(raw, "x")[0], dict)
    except InputError as error:
        assert "\n" not in str(error)
