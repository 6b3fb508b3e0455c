"""A COCO-format dataset filtered and relabelled at two levels."""

from jobs.coco.config import CocoConfig
from jobs.coco.job import build, run, write_report

__all__ = ["CocoConfig", "build", "run", "write_report"]
