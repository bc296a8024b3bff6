"""A pod's environment and exit status, read and decided in one way by all entrypoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from deepfake_detector.core.errors import EXIT_OK, ConfigError, DetectorError


def exit_status(work: Callable[[], None]) -> int:
    """Do the work; an expected failure is its one line, last on stderr, and its status (core/errors.py)."""
    try:
        work()
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return EXIT_OK


def required(environment: Mapping[str, str], name: str) -> str:
    """The variable's value; raises ConfigError where it is not set, or empty."""
    if not environment.get(name):
        raise ConfigError(f"{name}: not set (environment)")
    return environment[name]


def number(environment: Mapping[str, str], name: str, low: int, high: int, default: str = "") -> int:
    """A whole number from `low` to `high`; raises ConfigError naming the variable and its value."""
    text = environment.get(name) or default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{name}={text!r}: expected a number from {low} to {high} (environment)")
    return int(text)
