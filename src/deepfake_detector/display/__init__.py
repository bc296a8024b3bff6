"""What a person sees while a run goes on, on this machine or in a cluster. Everything is read from the run.

bars   a progress bar a stage, and a line for each epoch and each lost attempt
words  lines that describe epochs, records and test metrics
"""

from deepfake_detector.display.bars import PreprocessDisplay, TrainDisplay
from deepfake_detector.display.words import describe_epoch, describe_records

__all__ = ["PreprocessDisplay", "TrainDisplay", "describe_epoch", "describe_records"]
