"""Run by its path in an interpreter of its own (`python -I load_check.py FOLDER FRAMES.npy OUT.npz`).

Loads an exported folder in all three ways and stores what each returns. The project may not be imported here: the
folder must do without it. So this file uses nothing of it either.
"""

import os
import sys


def main(folder: str, frames_file: str, out_file: str) -> None:
    sys.modules["deepfake_detector"] = None  # type: ignore[assignment]  # any import of it raises ImportError
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    load(folder, frames_file, out_file)


def load(folder: str, frames_file: str, out_file: str) -> None:
    """frames: uint8 (n, T, S, S, 3); stored: float32 (n, 1) under saved_model, keras, probability and logit."""
    import numpy as np

    frames = np.load(frames_file, allow_pickle=False)
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    served = loaded.signatures["serving_default"](tf.constant(frames))
    model = tf.keras.models.load_model(folder, safe_mode=True)
    np.savez(
        out_file,
        saved_model=loaded(frames).numpy(),
        keras=model(frames, training=False).numpy(),
        probability=served["probability"].numpy(),
        logit=served["logit"].numpy(),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
