"""Stages: functions of plain values that a job, a test or a process pool runs unchanged."""
