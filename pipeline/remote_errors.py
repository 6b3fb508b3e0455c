"""What went wrong in a step's own code, here or on a worker, told on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import RaylensError, UsageError

if TYPE_CHECKING:
    import ray


def told(error: ray.exceptions.RayTaskError, step: str) -> RaylensError:
    """What a worker raised, as the error a user is meant to see."""
    return told_cause(error.cause if isinstance(error.cause, Exception) else error, step)


def told_cause(cause: Exception, step: str) -> RaylensError:
    """What a step's own code raised, as the error a user is meant to see."""
    if isinstance(cause, RaylensError):
        return cause
    # How a method says that its input or setting is wrong; a missing key or index is a mistake in its code.
    if isinstance(cause, (ValueError, LookupError)) and not isinstance(cause, (KeyError, IndexError)):
        return UsageError(str(cause), where=f"step '{step}'")
    return RaylensError(
        f"step '{step}' failed: {type(cause).__name__}: {last_line(cause)}",
        cure="set RAYLENS_DEBUG=1 for the traceback; what is committed is kept",
    )


def last_line(error: BaseException) -> str:
    """The last line of an error that says anything."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
