"""The whole pipeline on one machine, as the very processes that pods would run.

launch     which processes, in which order, and when one is started again
processes  children that end with their parent
"""

from deepfake_detector.local.launch import run_local

__all__ = ["run_local"]
