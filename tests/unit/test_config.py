"""Settings: what is refused, how it is said, and which change costs which stage."""

import pytest

from deepfake_detector.core import config as settings
from deepfake_detector.core.config import STAGES, Config
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.recipes import RECIPES, resolve


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_is_valid_and_says_its_name(recipe):
    config = resolve(recipe)
    assert config.recipe == recipe
    assert settings.parse(config.model_dump(mode="json"), "a round trip") == config


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        pytest.param("train.epochs=0", ["train.epochs=0", "greater than or equal to 1", "'demo'"], id="below least"),
        pytest.param("train.epochs=many", ["train.epochs=many", "integer"], id="not a number"),
        pytest.param("train.learning_rate=nan", ["train.learning_rate", "finite"], id="not finite"),
        pytest.param("train.epoch=3", ["train.epoch=3", "expected one of", "train.epochs"], id="unknown key"),
        pytest.param("epochs=3", ["epochs=3", "expected one of", "train.epochs"], id="no section"),
        pytest.param("model.backbone=resnet", ["model.backbone=resnet", "'compact'"], id="not a choice"),
        pytest.param("train.workers=3", ["global_batch=16", "multiple of workers=3"], id="batch not divisible"),
        pytest.param("data.test=0.99", ["validation + test = 1.14", "less than 1"], id="nothing left to train on"),
        pytest.param("faces.smoothing_frames=4", ["smoothing_frames=4", "odd"], id="even window"),
        pytest.param("train.seed=4294967296", ["train.seed", "less than 4294967296"], id="seed of more than 32 bits"),
        pytest.param(
            f"model.weights_sha256={'0' * 64}", ["without weights", "model.weights"], id="checksum of nothing"
        ),
        pytest.param("train.epochs", ["train.epochs", "key=value"], id="no equals sign"),
    ],
)
def test_a_bad_setting_is_refused_by_name_value_and_expectation(assignment, says):
    with pytest.raises(ConfigError) as refusal:
        resolve("demo", [assignment])
    message = str(refusal.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_a_backbone_that_the_crops_are_too_small_for_is_refused():
    with pytest.raises(
        ConfigError, match=r"^model\.backbone=mobilenet_v3_small with faces\.size=16: expected at least 32"
    ):
        resolve("demo", ["model.backbone=mobilenet_v3_small", "faces.size=16"])


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"--recipe best: expected one of demo, dfdc, ffpp, seed"):
        resolve("best")


@pytest.mark.parametrize(
    ("setting", "first_stage"),
    [
        ("data.seed=1", "plan"),
        ("sampling.frames=9", "preprocess"),
        ("faces.margin=1.5", "preprocess"),
        ("limits.max_pixels=1000000", "preprocess"),
        ("model.head=mean", "train"),
        ("train.learning_rate=0.5", "train"),
        ("export.prior=0.1", "export"),
        ("operations.attempts=3", None),
        ("operations.max_lost_fraction=0.5", None),
    ],
)
def test_a_change_costs_its_own_stage_and_the_later_ones_only(setting, first_stage):
    before, after = resolve("demo"), resolve("demo", [setting])
    changed = [
        stage
        for stage in STAGES
        if settings.fingerprint(settings.stage_settings(before, stage))
        != settings.fingerprint(settings.stage_settings(after, stage))
    ]
    assert changed == (list(STAGES[STAGES.index(first_stage) :]) if first_stage else [])


def test_every_setting_belongs_to_exactly_one_stage_or_to_operations():
    sections = [section for stage in STAGES for section in settings.STAGE_SECTIONS[stage]]
    assert sorted([*sections, "operations", "recipe"]) == sorted(Config.model_fields)


def test_a_different_setting_is_named():
    ours, theirs = {"train.epochs": 3, "train.seed": 0}, {"train.epochs": 5, "train.seed": 0}
    with pytest.raises(ConfigError, match=r"train\.epochs=3: expected 5, with which the model was made"):
        settings.require_same(ours, theirs, "the model")
    settings.require_same(ours, dict(reversed(ours.items())), "the model")
