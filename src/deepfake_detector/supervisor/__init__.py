"""Linked supervisors: small parents of the TensorFlow processes that agree on who trains with whom.

policy      what the rendezvous decides: events in, actions out, no I/O
attempts    the run's count of attempts, with their reasons
wire        one JSON object a line over TCP
keeper      the rendezvous: the policy, connected to sockets and storage
member      the supervisor's side: starts, watches and ends one child as it is told
child       one child process that never outlives its supervisor
leash       what ties it: a few lines that run in the child before its command
supervise   a supervisor's whole life, which ends with the run's
"""
