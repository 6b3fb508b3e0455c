"""Linear interpreters: what a network adds up, layer by layer and pixel by pixel."""

from jobs.linear.config import LinearConfig
from jobs.linear.job import build, plan_lines, run, write_report

__all__ = ["LinearConfig", "build", "plan_lines", "run", "write_report"]
