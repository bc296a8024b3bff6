"""A run's settings: kept, compared with what its markers were made with, inherited with another run's records."""

import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import ConfigError, NotFoundError
from deepfake_detector.stages.prepare import Cpus, prepare_run
from deepfake_detector.stages.runs import load_config, load_given, records_storage
from tests.make_markers import plan_summary, trained_marker


def prepare(tmp_path, *assignments, run="run", records=""):
    return prepare_run(
        str(tmp_path / run),
        recipe="demo",
        assignments=list(assignments),
        videos="" if records else str(tmp_path / "videos"),
        records=records,
    )


def mark_planned(run, config):
    run.write(layout.PLAN, plan_summary(config).encode())


def mark_trained(run, config):
    run.write(layout.TRAINED, trained_marker(config).encode())


def test_settings_are_stored_as_given_and_as_resolved(tmp_path):
    run, config = prepare(tmp_path, "train.epochs=3")
    assert load_config(run) == config
    assert config.data.videos == str(tmp_path / "videos")
    assert config.train.threads >= 1
    assert records_storage(run).uri == run.uri


def test_a_setting_of_a_finished_stage_cannot_change(tmp_path):
    run, config = prepare(tmp_path)
    mark_planned(run, config)
    with pytest.raises(ConfigError, match=r"data\.seed=7: expected 0, with which .*plan/summary.json was made"):
        prepare(tmp_path, "data.seed=7")
    assert load_config(run) == config


def test_a_setting_of_a_later_stage_can_still_change(tmp_path):
    run, config = prepare(tmp_path)
    mark_planned(run, config)
    prepare(tmp_path, "train.learning_rate=0.5")
    assert load_config(run).train.learning_rate == 0.5
    mark_trained(run, load_config(run))
    with pytest.raises(ConfigError, match=r"train\.learning_rate=0\.001: expected 0\.5"):
        prepare(tmp_path)


def test_operations_can_always_change(tmp_path):
    run, config = prepare(tmp_path)
    mark_planned(run, config)
    mark_trained(run, config)
    prepare(tmp_path, "operations.attempts=99")
    assert load_config(run).operations.attempts == 99


def test_threads_of_a_run_stay_on_another_machine(tmp_path):
    run, config = prepare(tmp_path, "train.threads=7")
    mark_trained(run, config)
    _, again = prepare(tmp_path)
    assert again.train.threads == 7


def test_threads_are_shared_anew_until_training_has_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("deepfake_detector.stages.prepare.cpu_limit", lambda: 4)
    assert prepare(tmp_path, "train.workers=1")[1].train.threads == 4
    run, config = prepare(tmp_path, "train.workers=2")
    assert config.train.threads == 2
    mark_trained(run, config)
    monkeypatch.setattr("deepfake_detector.stages.prepare.cpu_limit", lambda: 8)
    assert prepare(tmp_path, "train.workers=2")[1].train.threads == 2


def test_backbone_weights_that_are_not_there_are_refused_at_once(tmp_path):
    with pytest.raises(NotFoundError, match=r"model\.weights=.*none\.weights\.h5: not found"):
        prepare(tmp_path, f"model.weights={tmp_path}/none.weights.h5")
    assert not (tmp_path / "run").exists()


def test_videos_and_records_may_agree(tmp_path):
    first, config = prepare(tmp_path)
    again = {"recipe": "demo", "assignments": [], "records": first.uri}
    _, second = prepare_run(str(tmp_path / "second"), videos=config.data.videos, **again)
    assert second.data.videos == config.data.videos
    with pytest.raises(ConfigError, match=r"--videos .*other: expected .*videos, from which"):
        prepare_run(str(tmp_path / "third"), videos=str(tmp_path / "other"), **again)


def test_records_bring_their_settings(tmp_path):
    first, _ = prepare(tmp_path, "faces.size=48", "sampling.frames=4")
    run, config = prepare(tmp_path, "train.epochs=2", run="second", records=first.uri)
    assert (config.faces.size, config.sampling.frames, config.train.epochs) == (48, 4, 2)
    assert records_storage(run).uri == first.uri


def test_a_setting_that_the_records_contradict_is_refused(tmp_path):
    first, _ = prepare(tmp_path, "faces.size=48")
    with pytest.raises(ConfigError, match=r"faces\.size=64: expected 48"):
        prepare(tmp_path, "faces.size=64", run="second", records=first.uri)


def test_records_of_no_run_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match=r"is .*none a run folder"):
        prepare(tmp_path, run="second", records=str(tmp_path / "none"))


def test_a_run_without_settings_starts_from_the_default_recipe(tmp_path):
    _, config = prepare_run(str(tmp_path / "run"), recipe=None, assignments=[], videos=str(tmp_path / "videos"))
    assert config.recipe == "dfdc"


def test_what_was_given_before_holds_with_new_assignments_on_top(tmp_path):
    run, first = prepare(tmp_path, "train.epochs=3", "faces.size=48")
    _, config = prepare_run(run.uri, recipe=None, assignments=["train.epochs=4", "train.workers=1"])
    assert (config.recipe, config.faces.size, config.train.epochs, config.train.workers) == ("demo", 48, 4, 1)
    assert config.data == first.data
    given = {"recipe": "demo", "set": ["train.epochs=4", "faces.size=48", "train.workers=1"]}
    assert load_given(run) == {**given, "videos": str(tmp_path / "videos"), "records": ""}
    prepare_run(run.uri, recipe=None, assignments=[])
    assert load_config(run) == config


def test_records_given_before_hold(tmp_path):
    first, _ = prepare(tmp_path, "faces.size=48")
    run, _ = prepare(tmp_path, run="second", records=first.uri)
    _, config = prepare_run(run.uri, recipe=None, assignments=[])
    assert (config.faces.size, records_storage(run).uri) == (48, first.uri)


def test_a_recipe_that_is_named_starts_anew_on_the_same_videos(tmp_path):
    run, first = prepare(tmp_path, "train.epochs=3")
    _, config = prepare_run(run.uri, recipe="demo", assignments=[])
    assert (config.train.epochs, config.data.videos) == (20, first.data.videos)


def test_a_new_run_without_videos_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--videos: expected a folder or gs:// prefix .*none was given to .*/run"):
        prepare_run(str(tmp_path / "run"), recipe=None, assignments=[])
    assert not (tmp_path / "run").exists()


def test_thread_counts_come_from_the_pods_limits(tmp_path):
    limits = Cpus(train_threads=3, decoders=5)
    inputs = {"recipe": "demo", "videos": str(tmp_path / "videos")}
    run, config = prepare_run(str(tmp_path / "run"), assignments=[], cpus=limits, **inputs)
    assert (config.train.threads, config.operations.decoders) == (3, 5)
    _, config = prepare_run(run.uri, assignments=["train.threads=2", "operations.decoders=1"], cpus=limits, **inputs)
    assert (config.train.threads, config.operations.decoders) == (2, 1)


@pytest.mark.parametrize(
    ("stage", "assignment", "message"),
    [
        pytest.param(
            "train", "train.learning_rate=0.5", r"train\.learning_rate=0\.5: expected 0\.001", id="its own setting"
        ),
        pytest.param("train", "train.workers=1", r"train\.workers=1: expected 2", id="workers"),
        pytest.param("train", "faces.size=48", r"faces\.size=48: expected 64", id="of an earlier stage"),
        pytest.param("preprocess", "data.shards=9", r"data\.shards=9: expected 2", id="shards"),
        pytest.param("export", "export.prior=0.1", r"export\.prior=0\.1: expected 0\.5", id="export"),
        pytest.param("train", "export.prior=0.1", r"export\.prior=0\.1: expected 0\.5", id="the export of a training"),
    ],
)
def test_a_setting_of_a_stage_at_work_cannot_change(tmp_path, stage, assignment, message):
    run, config = prepare(tmp_path)
    with pytest.raises(ConfigError, match=f"{message}, with which the {stage} Job at work on .*/run was made"):
        prepare_run(run.uri, recipe=None, assignments=[assignment], active=[stage])
    assert load_config(run) == config


def test_a_stage_at_work_leaves_later_stages_open_and_keeps_its_threads(tmp_path):
    run, _ = prepare(tmp_path, "train.threads=0")
    threads = load_config(run).train.threads
    more = Cpus(train_threads=threads + 1, decoders=1)
    _, config = prepare_run(run.uri, recipe=None, assignments=["operations.attempts=9"], cpus=more, active=["train"])
    assert (config.train.threads, config.operations.attempts) == (threads, 9)
    _, config = prepare_run(run.uri, recipe=None, assignments=["train.epochs=9"], cpus=more, active=["preprocess"])
    assert (config.train.threads, config.train.epochs) == (threads + 1, 9)


def test_other_records_under_a_stage_at_work_are_refused(tmp_path):
    first, _ = prepare(tmp_path, run="first")
    run, _ = prepare(tmp_path)
    with pytest.raises(ConfigError, match=r"--records '.*/first': expected '', with which the train Job at work"):
        prepare_run(run.uri, recipe=None, assignments=[], records=first.uri, active=["train"])


def test_local_storage_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("run").uri == str(tmp_path / "run")
