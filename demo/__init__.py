"""The demo: a synthesised, labelled video set and the real pipeline run on it."""
