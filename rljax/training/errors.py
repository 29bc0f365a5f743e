"""Errors that end a run with a message for a person, and full disks among all others."""

import errno


class RunError(RuntimeError):
    """The run cannot go on; the message says why, what is kept, and what to do."""

    exit_code = 1


class PreemptedError(RunError):
    """The run was asked to stop; it saved a checkpoint first."""

    exit_code = 143  # that of a process that SIGTERM ended: whoever asked knows that it is not done


def disk_is_full(error: BaseException) -> bool:
    """Whether an error of any layer means a full disk.

    A device out of memory is RESOURCE_EXHAUSTED too: that alone is not a sign of a disk.
    """
    return "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
