"""The end of a process whose exit status matters."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Run exit handlers and end the process without tearing the interpreter down.

    Libraries whose threads still stand then (Arrow's) abort it now and then, and the status would be theirs.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
