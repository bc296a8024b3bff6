"""What a submitter's machine does about a run in a cluster: create its Jobs, follow, explain and remove them.

commands (arguments), submit, deploy, doctor (checks first), emulator (the way to the local overlay's storage),
follow (live display), logs, clean, tensorboard. Pods never import this package.
"""
