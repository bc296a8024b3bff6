"""The command line as a user meets it: real processes, exit statuses, one-line errors."""

import json
import os
import subprocess
import sys

import pytest

from deepfake_detector.core.errors import EXIT_PERMANENT


def detector(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepfake_detector", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from deepfake_detector.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'cv2', 'av', 'numpy', 'google.cloud', 'sklearn', 'pydantic'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "the whole pipeline on this machine" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["local", "--run", "{tmp}/run"], "--videos: expected", id="no videos"),
        pytest.param(
            ["local", "--run", "{tmp}/run", "--videos", "{tmp}", "--recipe", "best"], "--recipe best", id="recipe"
        ),
        pytest.param(
            ["local", "--run", "{tmp}/run", "--videos", "{tmp}", "--set", "train.epochs=0"],
            "train.epochs=0",
            id="value",
        ),
        pytest.param(["local", "--run", "s3://bucket/run", "--videos", "{tmp}"], "s3://bucket/run", id="scheme"),
        pytest.param(["local", "--run", "{tmp}/run", "--records", "{tmp}/none"], "{tmp}/none", id="no such records"),
        pytest.param(["status", "--run", "{tmp}"], "{tmp}/config.json", id="not a run"),
        pytest.param(["pull", "--run", "{tmp}", "--to", "{tmp}/model"], "{tmp}", id="no model to pull"),
        pytest.param(["predict", "--model", "{tmp}/none", "video.mp4"], "{tmp}/none", id="no model to judge with"),
    ],
)
def test_a_mistake_is_one_line_and_a_permanent_status(tmp_path, arguments, says):
    result = detector(*(argument.format(tmp=tmp_path) for argument in arguments))
    lines = result.stderr.splitlines()
    assert result.returncode == EXIT_PERMANENT, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert says.format(tmp=tmp_path) in lines[0]
    assert not (tmp_path / "run").exists(), "nothing is written before the settings are right"


def test_debug_shows_the_traceback(tmp_path):
    result = detector("status", "--run", str(tmp_path), "--debug")
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone_is_no_success(tmp_path, stream):
    from deepfake_detector.stages.prepare import prepare_run

    prepare_run(str(tmp_path / "run"), recipe="demo", assignments=[], videos=str(tmp_path))
    run = tmp_path / ("run" if stream == "stdout" else "none")  # a failure is told on stderr
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "deepfake_detector", "status", "--run", str(run)]
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    result = subprocess.run(command, **{stream: writing, other: subprocess.PIPE}, timeout=60, check=False)
    os.close(writing)
    assert result.returncode == 141
    assert not result.stdout
    assert not result.stderr


def test_status_of_a_run_that_has_only_settings(tmp_path):
    from deepfake_detector.stages.prepare import prepare_run

    prepare_run(str(tmp_path / "run"), recipe="demo", assignments=[], videos=str(tmp_path))
    text = detector("status", "--run", str(tmp_path / "run"))
    assert text.returncode == 0, text.stderr
    assert "not made" in text.stdout
    assert "not begun" in text.stdout
    document = json.loads(detector("status", "--run", str(tmp_path / "run"), "--json").stdout)
    assert document["given"]["recipe"] == "demo"
    assert document["plan"] is None
