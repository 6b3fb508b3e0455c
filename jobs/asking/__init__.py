"""Networks that ask: for a colour here, then there; trained, then applied."""

from jobs.asking.config import AskingConfig
from jobs.asking.job import build, run, write_report

__all__ = ["AskingConfig", "build", "run", "write_report"]
