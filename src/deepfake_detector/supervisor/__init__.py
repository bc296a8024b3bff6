"""Parents of the working processes, without their libraries. In training they agree on who trains with whom.

policy      what the rendezvous decides: events in, actions out, no I/O
attempts    the run's count of attempts, with their reasons
wire        one JSON object a line over TCP
place       where a supervisor is, and its peers
terms       who keeps the rendezvous: whoever created the latest of some small objects
office      finding the rendezvous, or taking it over
keeper      the rendezvous: the policy, connected to sockets and storage
member      the supervisor's side: starts, watches and ends one child as it is told
child       one child process that never outlives its supervisor
standby     a child in waiting, with TensorFlow imported
leash       what ties it: a few lines that run in the child before its command
supervise   a training supervisor's whole life, which ends with the run's
attend      the same for preprocessing and export, where a child has no peers
logs        what is kept in the run of a process's output, and why it ended
sigterm     SIGTERM, obeyed from the first line on
where       the pod and the node that a process runs in
"""
