"""Every known layout, every way to spoil one, and how they join; listings only, no files."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping

import pytest

from deepfake_detector.core import layout
from deepfake_detector.core.datasets import Found, FoundVideo, find_videos
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.plan import group_videos


def find(files: Mapping[str, str | bytes | int]) -> Found:
    """Text and bytes are metadata files; whole numbers are sizes of files that nobody may read."""
    sizes = {name: value if isinstance(value, int) else len(value) for name, value in files.items()}

    def read(name: str) -> bytes:
        value = files[name]
        assert not isinstance(value, int), f"{name} was read"
        return value.encode() if isinstance(value, str) else value

    return find_videos(sizes, read, "videos")


def by_path(found: Found) -> dict[str, FoundVideo]:
    return {video.path: video for video in found.videos}


def together(found: Found) -> set[frozenset[str]]:
    """The groups with more than one video, as sets of paths."""
    groups: dict[str, set[str]] = {}
    paths = {video.key: video.path for video in found.videos}
    for key, group in group_videos(found.videos).items():
        groups.setdefault(group, set()).add(paths[key])
    return {frozenset(paths) for paths in groups.values() if len(paths) > 1}


def labels(found: Found) -> dict[str, int]:
    return {video.path: video.label for video in found.videos}


def lost(found: Found) -> dict[str, Outcome]:
    return {outcome.key: outcome.outcome for outcome in found.lost}


YOUTUBE = "original_sequences/youtube/c23/videos"
DFDC = json.dumps({"a.mp4": {"label": "REAL", "split": "train", "original": None}, "b.mp4": {"label": "REAL"}})


def test_dfdc_parts_are_joined_over_their_folders() -> None:
    fakes = {
        "x.mp4": {"label": "FAKE", "split": "train", "original": "a.mp4"},
        "y.mp4": {"label": "FAKE", "split": "train", "original": "gone.mp4"},
        "z.mp4": {"label": "FAKE", "split": "train", "original": "gone.mp4"},
    }
    found = find(
        {
            "part_0/metadata.json": DFDC,
            "part_0/a.mp4": 1,
            "part_0/b.mp4": 1,
            "part_1/metadata.json": json.dumps(fakes),
            **{f"part_1/{name}": 1 for name in fakes},
        }
    )
    assert labels(found) == {
        "part_0/a.mp4": 0,
        "part_0/b.mp4": 0,
        "part_1/x.mp4": 1,
        "part_1/y.mp4": 1,
        "part_1/z.mp4": 1,
    }
    assert together(found) == {
        frozenset({"part_0/a.mp4", "part_1/x.mp4"}),
        frozenset({"part_1/y.mp4", "part_1/z.mp4"}),
    }
    assert by_path(found)["part_1/x.mp4"].original == by_path(found)["part_0/a.mp4"].key == "dfdc/real/a"
    assert by_path(found)["part_1/y.mp4"].original == ""
    assert found.lines == ["DFDC in part_0/, part_1/: 2 real, 3 fake"]


def test_faceforensics_pairs_are_joined_by_both_ids() -> None:
    fakes = [f"manipulated_sequences/{method}/c23/videos/000_003.mp4" for method in ("Deepfakes", "FaceSwap")]
    reals = [f"{YOUTUBE}/{number}.mp4" for number in ("000", "003", "004")]
    found = find(dict.fromkeys([*fakes, *reals], 1))
    assert labels(found) == dict.fromkeys(fakes, 1) | dict.fromkeys(reals, 0)
    assert together(found) == {frozenset([*fakes, *reals[:2]])}
    assert [by_path(found)[path].key for path in (*fakes, reals[0])] == [
        "ffpp/Deepfakes/000_003",
        "ffpp/FaceSwap/000_003",
        "ffpp/youtube/000",
    ]
    assert {by_path(found)[path].original for path in fakes} == {"ffpp/youtube/000"}
    assert found.lines == ["FaceForensics++ in ./: 3 real, 2 fake"]


def test_faceforensics_compressions_are_one_group_with_their_own_originals_and_keys() -> None:
    reals = [f"ff/original_sequences/youtube/{part}/videos/000.mp4" for part in ("c23", "c40", "raw")]
    fakes = [f"ff/manipulated_sequences/Deepfakes/{part}/videos/000_003.mp4" for part in ("c23", "c40")]
    found = find(dict.fromkeys([*reals, *fakes], 1))
    assert together(found) == {frozenset([*reals, *fakes])}
    assert len({video.key for video in found.videos}) == 5
    videos = by_path(found)
    assert [videos[fake].original for fake in fakes] == [videos[real].key for real in reals[:2]]


def test_deepfakedetection_is_joined_by_its_actors_and_not_with_youtube() -> None:
    real, other = (f"original_sequences/actors/c23/videos/{name}.mp4" for name in ("01__talking", "03__talking"))
    fake = "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__talking__JZUXXFRB.mp4"
    youtube = f"{YOUTUBE}/01.mp4"
    found = find(dict.fromkeys([real, other, fake, youtube], 1))
    assert together(found) == {frozenset({real, fake})}
    assert by_path(found)[fake].original == by_path(found)[real].key


def test_faceforensics_masks_are_no_data_and_odd_names_are_counted() -> None:
    found = find(
        {
            f"{YOUTUBE}/000.mp4": 1,
            "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4": 1,
            "manipulated_sequences/Deepfakes/c23/videos/odd.mp4": 1,
        }
    )
    assert [video.path for video in found.videos] == [f"{YOUTUBE}/000.mp4"]
    assert [(o.outcome, o.label) for o in found.lost] == [(Outcome.UNLABELLED, None)]
    assert r"(\d+)_(\d+)" in found.lost[0].detail
    assert "FaceForensics++ mask videos ignored: 1" in found.lines


def test_a_folder_named_fake_does_not_make_data_of_masks_and_odd_names() -> None:
    found = find(
        {
            "real/a.mp4": 1,
            "fake/manipulated_sequences/Deepfakes/masks/videos/000_003.mp4": 1,
            "fake/manipulated_sequences/Deepfakes/c23/videos/odd.mp4": 1,
        }
    )
    assert labels(found) == {"real/a.mp4": 0}
    assert set(lost(found).values()) == {Outcome.UNLABELLED}


def test_celebdf_is_joined_by_both_ids() -> None:
    real, other, fake, own = (
        "Celeb-real/id0_0001.mp4",
        "Celeb-real/id2_0000.mp4",
        "Celeb-synthesis/id0_id2_0001.mp4",
        "YouTube-real/00012.mp4",
    )
    found = find(dict.fromkeys([real, other, fake, own], 1))
    assert labels(found) == {real: 0, other: 0, fake: 1, own: 0}
    assert together(found) == {frozenset({real, other, fake})}
    assert by_path(found)[fake].original == "celebdf/Celeb-real/id0_0001"


@pytest.mark.parametrize(
    ("files", "groups"),
    [
        pytest.param(["real/a.mp4", "fake/b.mp4"], [], id="own-groups"),
        pytest.param(["real/a.mp4", "fake/a.mp4"], [{"real/a.mp4", "fake/a.mp4"}], id="same-stem"),
        pytest.param(["Real/a.MP4", "FAKE/a.avi"], [{"Real/a.MP4", "FAKE/a.avi"}], id="any-case"),
        pytest.param(["real/a.mp4", "fake/a__swap.mp4"], [{"real/a.mp4", "fake/a__swap.mp4"}], id="suffix"),
        pytest.param(
            ["real/a__b.mp4", "real/a.mp4", "fake/a__b__swap.mp4"],
            [{"real/a__b.mp4", "fake/a__b__swap.mp4"}],
            id="longest-real-stem-wins",
        ),
        pytest.param(
            ["real/q.mp4", "fake/x__1.mp4", "fake/x__2.mp4"], [{"fake/x__1.mp4", "fake/x__2.mp4"}], id="absent"
        ),
        pytest.param(["real/q.mp4", "fake/__1.mp4", "fake/__2.mp4"], [], id="nothing-before-the-underscores"),
        pytest.param(["real/p/a.mp4", "fake/m/n/a.mp4"], [{"real/p/a.mp4", "fake/m/n/a.mp4"}], id="nested"),
        pytest.param(["s/real/a.mp4", "t/fake/a.mp4"], [], id="not-side-by-side"),
    ],
)
def test_real_and_fake_folders(files: list[str], groups: list[set[str]]) -> None:
    found = find(dict.fromkeys(files, 1))
    assert labels(found) == {path: int("fake" in path.lower()) for path in files}
    assert together(found) == {frozenset(group) for group in groups}


def test_the_innermost_of_real_and_fake_decides() -> None:
    assert labels(find({"fake/real/a.mp4": 1, "real/fake/b.mp4": 1})) == {"fake/real/a.mp4": 0, "real/fake/b.mp4": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(
            "manifest.csv",
            "path,label,group\na.mp4,0,ann\nsub/b c.mp4,fake,ann\nd.mp4,REAL,\n./e.mp4,1,\n",
            id="csv",
        ),
        pytest.param(
            "labels.csv",
            '\ufeffGroup,Label,Path\r\nann,0,a.mp4\r\n\r\nann,FAKE,"sub/b c.mp4"\r\n,real,d.mp4\r\n,1,e.mp4\r\n',
            id="spreadsheet-with-mark-and-other-order",
        ),
        pytest.param(
            "Manifest.jsonl",
            '{"path": "a.mp4", "label": 0, "group": "ann"}\n{"path": "sub/b c.mp4", "label": "fake", "group": "ann"}\n'
            '\n{"path": "d.mp4", "label": "Real", "group": null}\n{"path": "e.mp4", "label": "1"}',
            id="jsonl",
        ),
    ],
)
def test_manifests(name: str, text: str) -> None:
    found = find({f"set/{name}": text, "set/a.mp4": 1, "set/sub/b c.mp4": 1, "set/d.mp4": 1, "set/e.mp4": 1})
    assert labels(found) == {"set/a.mp4": 0, "set/sub/b c.mp4": 1, "set/d.mp4": 0, "set/e.mp4": 1}
    assert together(found) == {frozenset({"set/a.mp4", "set/sub/b c.mp4"})}
    assert found.lines == [f"manifest in set/{name}: 2 real, 2 fake"]


def test_a_group_of_two_manifests_is_one_group() -> None:
    found = find({f"{s}/manifest.csv": f"path,label,group\nv.mp4,{s},ann" for s in "01"} | {"0/v.mp4": 1, "1/v.mp4": 1})
    assert together(found) == {frozenset({"0/v.mp4", "1/v.mp4"})}


def test_a_video_of_two_groups_joins_them() -> None:
    rows = "path,label,group\na.mp4,0,ann\nb.mp4,1,ann\nb.mp4,1,zoe\nc.mp4,0,zoe\nd.mp4,0,eve\n"
    found = find({"manifest.csv": rows, **dict.fromkeys(["a.mp4", "b.mp4", "c.mp4", "d.mp4"], 1)})
    assert together(found) == {frozenset({"a.mp4", "b.mp4", "c.mp4"})}


def test_a_manifest_gives_splits() -> None:
    found = find({"manifest.csv": "path,label,split\na.mp4,0,train\nb.mp4,1,VAL\n", "a.mp4": 1, "b.mp4": 1})
    assert {path: video.split for path, video in by_path(found).items()} == {"a.mp4": "train", "b.mp4": "validation"}


def test_unknown_columns_are_ignored_aloud() -> None:
    found = find({"manifest.csv": "path,label,gruop\na.mp4,0,x\n", "a.mp4": 1})
    assert "columns ignored: 'gruop' of manifest.csv" in found.lines


def test_a_manifest_wins_over_every_layout_and_fills_its_gaps_from_below() -> None:
    found = find(
        {
            "manifest.csv": "path,label,group\nreal/a.mp4,fake,\nfake/b__x.mp4,fake,zoe\nfake/c__x.mp4,1,\n",
            "real/a.mp4": 1,
            "real/b.mp4": 1,
            "real/c.mp4": 1,
            "fake/a.mp4": 1,
            "fake/b__x.mp4": 1,
            "fake/c__x.mp4": 1,
        }
    )
    videos = by_path(found)
    assert videos["real/a.mp4"].label == 1
    assert together(found) == {frozenset({"real/a.mp4", "fake/a.mp4"}), frozenset({"real/c.mp4", "fake/c__x.mp4"})}
    assert (videos["fake/b__x.mp4"].original, videos["fake/c__x.mp4"].original) == ("", videos["real/c.mp4"].key)
    assert any(line.startswith("described by more than one layout: 3, ") for line in found.lines)


def test_a_fake_stays_with_an_original_that_a_manifest_has_grouped() -> None:
    found = find(
        {
            "manifest.csv": "path,label,group\nreal/a.mp4,real,ann\nother.mp4,real,ann\n",
            "real/a.mp4": 1,
            "other.mp4": 1,
            "fake/a.mp4": 1,
        }
    )
    assert together(found) == {frozenset({"real/a.mp4", "other.mp4", "fake/a.mp4"})}


@pytest.mark.parametrize(
    ("files", "path", "dataset"),
    [
        pytest.param(
            {"real/metadata.json": '{"a.mp4": {"label": "FAKE"}}', "real/a.mp4": 1}, "real/a.mp4", "dfdc", id="dfdc"
        ),
        pytest.param({f"fake/{YOUTUBE}/000.mp4": 1}, f"fake/{YOUTUBE}/000.mp4", "ffpp", id="ffpp"),
        pytest.param({"fake/Celeb-real/id0_0000.mp4": 1}, "fake/Celeb-real/id0_0000.mp4", "celebdf", id="celebdf"),
    ],
)
def test_named_data_sets_win_over_real_and_fake_folders(files: dict[str, str | int], path: str, dataset: str) -> None:
    assert by_path(find(files))[path].dataset == dataset


def test_the_same_name_in_two_folders_has_two_keys() -> None:
    found = find({"s/real/a.mp4": 1, "t/real/a.mp4": 1, "t/real/a.avi": 1, "u/real/b.mp4": 1})
    assert {video.path: video.key for video in found.videos} == {
        "s/real/a.mp4": "folders/real/s/real/a.mp4",
        "t/real/a.mp4": "folders/real/t/real/a.mp4",
        "t/real/a.avi": "folders/real/t/real/a.avi",
        "u/real/b.mp4": "folders/real/b",
    }


def test_losses_are_outcomes() -> None:
    found = find({"d/metadata.json": DFDC, "d/a.mp4": 0, "d/stray.MKV": 1, "d/notes.txt": 1, "e.webm": 1})
    assert [(o.key, o.outcome, o.label, o.split) for o in found.lost] == [
        ("dfdc/real/b", Outcome.MISSING_FILE, 0, ""),
        ("unlabelled/unknown/d/stray.MKV", Outcome.UNLABELLED, None, ""),
        ("unlabelled/unknown/e.webm", Outcome.UNLABELLED, None, ""),
    ]
    assert found.lost[0].detail == "d/metadata.json, entry 'b.mp4'"
    assert found.lines == [
        "DFDC in d/: 1 real, 0 fake, 1 not there",
        "videos without a label: 2",
        "other files ignored: 1 .txt",
    ]


KERAS = '{"keras_version": "3.13.2", "date_saved": "2026-11-23@00:00:00"}'


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(KERAS, id="Keras"),
        pytest.param("[]", id="list"),
        pytest.param('{"authors": {"first": "ann"}, "version": 2}', id="description"),
        pytest.param("{}", id="empty"),
    ],
)
@pytest.mark.parametrize("name", ["metadata.json", "real/metadata.json", "run/model/metadata.json"])
def test_a_metadata_json_of_something_else_is_another_file(name: str, document: str) -> None:
    found = find({"real/a.mp4": 1, "fake/a.mp4": 1, name: document})
    assert labels(found) == {"real/a.mp4": 0, "fake/a.mp4": 1}
    assert found.lost == []
    assert found.lines[1:] == ["other files ignored: 1 .json"]


def test_a_broken_metadata_json_without_videos_is_another_file() -> None:
    assert find({"real/a.mp4": 1, "fake/a.mp4": 1, "run/metadata.json": "{"}).lost == []


def test_a_run_below_the_videos_is_no_data() -> None:
    videos: dict[str, str | bytes | int] = {"real/a.mp4": 1, "fake/a.mp4": 1}
    files = [
        layout.CONFIG,
        layout.PLAN,
        layout.PLAN_VIDEOS,
        layout.RECORDS_SUMMARY,
        layout.records("train", 0, 1, "0123abcd"),
        layout.shard_report(0, 1),
        layout.progress("preprocess", 0),
        layout.log("preprocess", 0, 1),
        layout.attempt(1),
        layout.METRICS,
        layout.checkpoint(8) + "state.index",
        layout.checkpoint_marker(8),
        layout.TRAINED,
        layout.MODEL + "saved_model.pb",
        layout.MODEL + "weights.h5",
        layout.DETECTOR,
        layout.REPORT_METRICS,
        layout.REPORT + "scores.csv",
        layout.REPORT + "report.html",
        layout.CHARTS,
    ]
    runs = {f"{folder}/{file}": 1 for folder in ("run", "real/run") for file in files}
    keras = {f"{folder}/{layout.MODEL}metadata.json": KERAS for folder in ("run", "real/run")}
    found = find({**videos, **runs, **keras})
    assert (found.videos, found.lost) == (find(videos).videos, [])


@pytest.mark.parametrize("name", ["real//b.mp4", "real/./b.mp4", "real/../real/b.mp4", "/real/b.mp4"])
def test_an_object_whose_name_is_no_path_is_a_loss_of_its_label(name: str) -> None:
    found = find({"real/a.mp4": 1, "fake/a.mp4": 1, name: 1})
    assert labels(found) == {"real/a.mp4": 0, "fake/a.mp4": 1}
    assert [(o.key, o.outcome, o.label) for o in found.lost] == [("folders/real/b", Outcome.BAD_NAME, 0)]
    assert repr(name) in found.lost[0].detail
    assert found.lines[-1] == "labelled videos with names that are no paths: 1"


def test_hidden_files_and_folder_placeholders_are_invisible() -> None:
    hidden = [".DS_Store", "real/._a.mp4", "__MACOSX/real/a.mp4", ".cache/b.mp4", "real/", "__MACOSX/metadata.json"]
    found = find({"real/a.mp4": 1, **dict.fromkeys(hidden, 1)})
    assert [video.path for video in found.videos] == ["real/a.mp4"]
    assert found.lost == []
    assert found.lines == ["real/ and fake/ folders in ./: 1 real, 0 fake"]


def test_composed_and_decomposed_names_are_the_same() -> None:
    composed = "Zoë 映像.mp4"
    stored = unicodedata.normalize("NFD", composed)
    assert stored != composed
    found = find({"manifest.csv": f"path,label\n{composed},1\n", stored: 1})
    assert labels(found) == {stored: 1}
    assert found.lost == []


def test_a_labelled_file_without_a_video_extension_is_planned() -> None:
    found = find({"manifest.csv": "path,label\nclip.bin,1\n", "clip.bin": 1})
    assert labels(found) == {"clip.bin": 1}
    assert len(found.lines) == 1


def test_the_order_of_the_listing_does_not_matter() -> None:
    files: dict[str, str | int] = {
        "d/metadata.json": DFDC,
        "d/a.mp4": 1,
        "d/b.mp4": 1,
        "real/a.mp4": 1,
        "fake/a.mp4": 1,
    }
    assert find(files) == find(dict(reversed(files.items())))
