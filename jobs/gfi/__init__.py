"""Guided feature inversion: a mask of what a network needs to see its class."""

from jobs.gfi.config import GfiConfig
from jobs.gfi.job import build, run, write_report

__all__ = ["GfiConfig", "build", "run", "write_report"]
