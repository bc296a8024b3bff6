"""Entrypoints of pods and local processes. Only these modules read settings from the environment."""
