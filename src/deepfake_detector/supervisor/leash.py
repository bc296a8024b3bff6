"""`python -I -S leash.py PARENT SIGNAL COMMAND...`: become COMMAND, to be sent SIGNAL when process PARENT dies.

The kernel keeps the wish over exec (prctl(2), PR_SET_PDEATHSIG), so a child never outlives a parent that was
killed with SIGKILL. A shim and not Popen's preexec_fn, which may deadlock in a parent that has threads. "Parent"
is the thread that forked: spawn from the main thread.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, signal, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":  # no other system has it: there a supervisor killed with SIGKILL leaves its child
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the call
        sys.exit(1)
    os.execvp(command[0], command)
