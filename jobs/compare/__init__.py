"""Every attribution method on the same images, by every measure, in one table."""

from jobs.compare.config import CompareJobConfig
from jobs.compare.job import build, run, write_report

__all__ = ["CompareJobConfig", "build", "run", "write_report"]
