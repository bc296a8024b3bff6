from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
from deepfake_detector.adapters.tensorflow_import import UNUSED, import_tensorflow
import_tensorflow()
assert {"keras", "tensorflow"} <= set(sys.modules)
print([name for name in UNUSED if name in sys.modules])
from deepfake_detector.adapters.scoring import area_under_roc
from matplotlib.figure import Figure
import_tensorflow()
print(area_under_roc([0, 1], [0.1, 0.9])[0], Figure.__name__, [name for name in UNUSED if not sys.modules.get(name)])
"""
BEFORE = """
import matplotlib, sys
from deepfake_detector.adapters.tensorflow_import import import_tensorflow
import_tensorflow()
print(sys.modules["matplotlib"] is matplotlib, "sklearn" in sys.modules)
"""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param(WITHOUT, "[]\n1.0 Figure []\n", id="what only Keras wants is imported later"),
        pytest.param(BEFORE, "True False\n", id="what is there stays"),
    ],
)
def test_tensorflow_is_imported_without_what_nobody_uses(script: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == said, done.stderr
