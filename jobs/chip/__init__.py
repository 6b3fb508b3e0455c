"""CHIP: which channels of a network tell a class, and where they look."""

from jobs.chip.config import ChipConfig
from jobs.chip.job import build, plan_lines, run, write_report

__all__ = ["ChipConfig", "build", "plan_lines", "run", "write_report"]
