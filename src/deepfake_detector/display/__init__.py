"""What a person sees while a run goes on, on this machine or in a cluster. Everything is read from the run.

bars   a progress bar a stage, and a line for each epoch and each lost attempt
words  lines that describe epochs and records
"""

from deepfake_detector.display.bars import Display, ExportDisplay, PreprocessDisplay, TrainDisplay
from deepfake_detector.display.words import describe_epoch, describe_records

__all__ = ["Display", "ExportDisplay", "PreprocessDisplay", "TrainDisplay", "describe_epoch", "describe_records"]
