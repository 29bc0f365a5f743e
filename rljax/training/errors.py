"""Errors that end a run with a message for the user, and the detection of a full disk."""

import errno


class RunError(RuntimeError):
    """The run cannot continue; the message gives the reason and what to do."""

    exit_code = 1


class PreemptedError(RunError):
    """The run received SIGTERM and saved a checkpoint before stopping."""

    exit_code = 143  # exit code of a process ended by SIGTERM; tells the scheduler that the run is unfinished


def disk_is_full(error: BaseException) -> bool:
    """True if an error means a full disk. RESOURCE_EXHAUSTED does not: XLA raises it when device memory is full."""
    return "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
