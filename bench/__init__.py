"""Benchmarks: ratios between two things measured in one run, since absolute times do not travel."""
