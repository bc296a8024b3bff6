"""jobs.train_worker, whose chief notes the moment of each step, and its pid, in the file CHAOS_STEPS."""

import os

from jobs.train_worker import live, obey_sigterm

if __name__ == "__main__":
    obey_sigterm()

import time

from deepfake_detector.core.markers import TrainState
from deepfake_detector.training.chief import Chief

progress = Chief.progress


def noted(self: Chief, state: TrainState, loss: float, steps: int, rate: float) -> None:
    with open(os.environ["CHAOS_STEPS"], "a") as file:
        file.write(f"{time.time()} {os.getpid()} {state.step}\n")
    progress(self, state, loss, steps, rate)


if __name__ == "__main__":
    Chief.progress = noted  # type: ignore[method-assign]
    live()
