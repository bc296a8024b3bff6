"""Entrypoints of pods and local processes. Only these modules read the environment."""
