"""What a submitter's machine does about a run in a cluster. Pods never import this package.

commands     arguments of every command that needs a cluster; target: where they work
deploy       what is applied once, and awaited
doctor       checks before work is submitted
submit       a stage's settings and its Job; results: what a finished stage has come to
follow       the live display; changes (watches), notices (what is worth a line)
status       pods in words; logs, also of pods that are gone
clean        stop Jobs, remove a run
tensorboard  a run's curves
emulator     the way to the local overlay's object store
"""
