"""Faults at random against whole runs on this machine: nothing that comes out may be different.

`python -m tests.chaos --runs 50 --seed 1` (make chaos RUNS=50 SEED=1): two undisturbed runs, then as many disturbed
ones, each a pure function of the seed and its number; a table of what was done to them and whether they are identical.

scenarios   what is done to which run and when: draws, no I/O
processes   the processes of a run, found in /proc
stage       one run with its faults; what came out of it
launcher    `deepfake-detector local`, with the training command below
train       jobs.train, whose worker tells of its steps
worker      jobs.train_worker, which tells of its steps
"""
