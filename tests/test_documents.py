"""Untrusted JSON and YAML."""

import json
import os
import time

import pytest

from cmfah_hf.documents import file_of, parse_json, parse_yaml, read_bytes, read_json, read_yaml
from cmfah_hf.errors import CMFAHError, DataError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" * 150 + "]" * 150,
        '{"a":' * 400_000,
        "1" * 5000,
        '{"a": "\\ud800"}',
        '{"\\udfff": 1}',
        '{"a": 1, "a": 2}',
        b"\xff\xfe",
        b'{"a": "\xed\xa0\x80"}',
        "",
        "nothing",
    ],
    ids=str,
)
def test_invalid_json_is_refused_in_one_line(text):
    with pytest.raises(DataError, match=r"^a\.json, line 3 ") as error:
        parse_json(text, "a.json, line 3", DataError)
    assert "\n" not in str(error.value)


def test_valid_json():
    value = {"a": [1, 2.5, None, True, "café \U0001f600"], "b": {"c": []}}
    assert parse_json(json.dumps(value), "x") == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode(), "x") == value


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: 1\nb: 2\na: 3", "line 3 gives 'a', as line 1"),
        ("x:\n  a: 1\n  a: 1", "line 3"),
        ("[" * 3000, "nested more than 100 deep"),
        ("- " * 3000, "nested too deep"),
        ("[" * 150 + "]" * 150, "nested"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("? [1, 2]\n: 3", "as a key"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: 2001-02-30", "not valid YAML"),
        ("a: [", "not valid YAML"),
        (b"a: \xff", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
    ],
)
def test_invalid_yaml_is_refused_in_one_line(text, named):
    start = time.process_time()
    with pytest.raises(CMFAHError, match=named) as error:
        parse_yaml(text, "run.yaml")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert time.process_time() - start < 0.5  # PyYAML looks at all open brackets at each further one


def test_valid_yaml():
    text = "a: 1e-4\nb: &b [1, .5, null]\nc: *b\nd: {1: x, '1': y}\ne: yes"
    assert parse_yaml(text, "x") == {
        "a": 1e-4, "b": [1, 0.5, None], "c": [1, 0.5, None], "d": {1: "x", "1": "y"}, "e": True
    }  # fmt: skip
    assert parse_yaml("", "x") is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml])
def test_only_regular_files_of_limited_size_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"1" * 101)
    (tmp_path / "empty").touch()
    for name in ("pipe", ".", "none", "n" * 5000, "a\0b", "/dev/zero", "big"):
        with pytest.raises(DataError) as error:
            read(tmp_path / name, DataError, most_bytes=100)
        assert "\n" not in str(error.value)
    assert read_bytes(tmp_path / "empty") == b""


def test_an_impossible_file_name_is_no_file(tmp_path):
    (tmp_path / "a").touch()
    assert file_of(tmp_path / "a") == tmp_path / "a"
    assert [file_of(tmp_path / name) for name in ("b", ".", "n" * 5000, "a\0b")] == [None] * 4
