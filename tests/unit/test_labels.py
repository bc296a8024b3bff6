"""Every way to spoil a file of labels, or to have none: one error that names file, entry, value and expectation."""

from __future__ import annotations

import pytest

from deepfake_detector.core.errors import DataError
from tests.unit.test_datasets import find

BAD_JSON = '{"a.mp4": {"label": "REAL"'


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {"d/metadata.json": BAD_JSON, "d/a.mp4": 1},
            ["d/metadata.json", "expected valid JSON", "line 1"],
            id="dfdc-not-json",
        ),
        pytest.param(
            {"metadata.json": "[" * 100_000, "d/a.mp4": 1}, ["metadata.json", "expected valid JSON"], id="dfdc-deep"
        ),
        pytest.param({"metadata.json": b"\xff{}", "a.mp4": 1}, ["byte 0xff at 0", "UTF-8"], id="dfdc-bytes"),
        pytest.param(
            {"metadata.json": '{"a": {"label": "REAL"}, "b": 3}'}, ["entry 'b'", "3", "expected"], id="dfdc-mixed"
        ),
        pytest.param({"metadata.json": '{"a.mp4": "REAL"}'}, ["entry 'a.mp4'", "'REAL'", "expected"], id="dfdc-entry"),
        pytest.param(
            {"metadata.json": '{"a.mp4": {"is_fake": 1}}'}, ["'a.mp4'", "is_fake", "label"], id="dfdc-test-set"
        ),
        pytest.param(
            {"metadata.json": '{"a.mp4": {"label": "MAYBE"}}'}, ["label='MAYBE'", "expected real"], id="dfdc-label"
        ),
        pytest.param(
            {"metadata.json": '{"a.mp4": {"label": "FAKE", "original": 3}}'},
            ["original=3", "or null"],
            id="dfdc-original",
        ),
        pytest.param(
            {"metadata.json": '{"a.mp4": {"label": "FAKE"}, "a.mp4": {"label": "REAL"}}', "a.mp4": 1},
            ["'a.mp4' appears twice"],
            id="dfdc-twice",
        ),
        pytest.param(
            {"metadata.json": '{"../a.mp4": {"label": "FAKE"}}'}, ["path='../a.mp4'", "inside"], id="dfdc-outside"
        ),
        pytest.param({"manifest.csv": ""}, ["manifest.csv: empty", "path, label"], id="csv-empty"),
        pytest.param({"manifest.csv": "file,label\na,0"}, ["line 1", "columns file, label", "path"], id="csv-column"),
        pytest.param({"manifest.csv": "path,path,label\na,a,0"}, ["line 1", "path appears 2 times"], id="csv-columns"),
        pytest.param({"manifest.csv": "path;label\na;0"}, ["line 1", "path;label"], id="csv-semicolons"),
        pytest.param({"s/labels.csv": "path,label\na,0\nb,2"}, ["s/labels.csv, line 3", "label='2'"], id="csv-label"),
        pytest.param({"manifest.csv": "path,label\na,0,x"}, ["line 2: 3 cells", "expected 2"], id="csv-cells"),
        pytest.param({"manifest.csv": 'path,label\n"a,0'}, ["line 2", "expected CSV"], id="csv-quote"),
        pytest.param({"manifest.csv": "path,label\n,0"}, ["line 2", "no path"], id="csv-no-path"),
        pytest.param({"manifest.csv": "path,label\na,"}, ["line 2", "no label"], id="csv-no-label"),
        pytest.param({"manifest.csv": "path,label\n/a,0"}, ["path='/a'", "relative"], id="csv-absolute"),
        pytest.param({"manifest.csv": "path,label\ngs://b/a,0"}, ["path='gs://b/a'", "relative"], id="csv-uri"),
        pytest.param({"manifest.csv": "path,label\n../a,0"}, ["path='../a'", "inside"], id="csv-outside"),
        pytest.param(
            {"manifest.csv": "path,label,split\na,0,dev"}, ["split='dev'", "train, validation, test"], id="csv-split"
        ),
        pytest.param(
            {"manifest.csv": b"path,label\n\xff,0"}, ["manifest.csv: byte 0xff at 11", "UTF-8"], id="csv-bytes"
        ),
        pytest.param(
            {"manifest.csv": "path,label\na,0\n./a,1"},
            ["line 3: a: label fake", "real, as in", "line 2"],
            id="conflict",
        ),
        pytest.param(
            {"manifest.csv": "path,label\na,0", "labels.csv": "path,label\na,1"},
            ["label", "as in labels.csv, line 2"],
            id="conflict-of-two-files",
        ),
        pytest.param(
            {"manifest.csv": "path,label,split\na,0,train\na,0,test"},
            ["split test", "expected train"],
            id="split-conflict",
        ),
        pytest.param({"manifest.jsonl": '{"path": "a"'}, ["manifest.jsonl, line 1", "JSON"], id="jsonl-broken"),
        pytest.param({"manifest.jsonl": '\n["a", 0]'}, ["line 2", "expected an object"], id="jsonl-list"),
        pytest.param({"manifest.jsonl": '{"path": "a"}'}, ["line 1", "no label"], id="jsonl-no-label"),
        pytest.param({"manifest.jsonl": '{"path": 3, "label": 0}'}, ["path=3"], id="jsonl-path"),
        pytest.param({"manifest.jsonl": '{"path": "\\udcff", "label": 0}'}, ["path='\\udcff'"], id="jsonl-surrogate"),
        pytest.param({"manifest.jsonl": '{"path": "a", "label": true}'}, ["label=True"], id="jsonl-label"),
        pytest.param({"manifest.jsonl": '{"path": "a", "label": 0, "group": [1]}'}, ["group=[1]"], id="jsonl-group"),
        pytest.param({}, ["videos: no such folder, or no files in it", "metadata.json", "manifest.csv"], id="nothing"),
        pytest.param(
            {"x/a.mp4": 1, "x/b.txt": 1},
            ["1 videos without a label among 2 files", "x/a.mp4", "real and fake"],
            id="none",
        ),
        pytest.param(
            {"manifest.csv": "path,label\na.mp4,0"},
            ["none of the 1 labelled videos", "a.mp4: not there"],
            id="all-gone",
        ),
        pytest.param({"real//a.mp4": 1}, ["real//a.mp4: expected a path"], id="all-bad-names"),
        pytest.param({"real/\udcff.mp4": 1}, ["real/\\udcff.mp4", "UTF-8"], id="name-not-utf8"),
    ],
)
def test_what_is_wrong_is_one_error_that_names_it(files: dict[str, str | bytes | int], expected: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        find(files)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message
