"""Every error that a user may see. Each is one line: the value, what was expected, and where.

The exit status is the API to Kubernetes: 78 (EX_CONFIG) means that no retry can help, and a Job's failure
policy stops on it; 75 (EX_TEMPFAIL) asks for another try. 69 (EX_UNAVAILABLE) stops the Job as well, but the same
command may be given again: a pod's peers did not come. Numbers from sysexits.h.
"""

EXIT_OK = 0
EXIT_UNAVAILABLE = 69
EXIT_RETRY = 75
EXIT_PERMANENT = 78
EXIT_TERMINATED = 143  # 128 + SIGTERM


class DetectorError(Exception):
    """Base of all expected failures; its text is shown to the user without a traceback."""

    exit_status = EXIT_PERMANENT


class ConfigError(DetectorError):
    """A setting that no retry can make right."""


class ClusterError(DetectorError):
    """The cluster, or the way to it, as it is now: no kubeconfig, a missing permission, an API server out of reach."""


class ClusterAwayError(ClusterError):
    """The API server did not answer, or not in time: worth another try."""

    exit_status = EXIT_RETRY


class DataError(DetectorError):
    """Input data that no retry can make right: no videos, one class only, a bad manifest."""


class CorruptError(DetectorError):
    """Stored bytes that disagree with the checksum of the marker that commits them."""


class ExportError(DetectorError):
    """The exported model does not load, or does not agree with the checkpoint that it was made from."""


class NotFoundError(DetectorError):
    """An object, folder or bucket that does not exist."""


class StorageError(DetectorError):
    """Storage was away, or refused for longer than retries allow: worth another try later."""

    exit_status = EXIT_RETRY


class WaitError(DetectorError):
    """Something awaited (a peer, a plan) did not come within its budget: worth another try."""

    exit_status = EXIT_RETRY


class PeerError(WaitError):
    """The other workers did not come within their budget. Waiting again would only hold this pod's room on its node."""

    exit_status = EXIT_UNAVAILABLE


class MemoryLimitError(DetectorError):
    """The kernel killed a process because the container's or the machine's memory ran out: it may not the next time."""

    exit_status = EXIT_RETRY
