"""Two-level classifiers on a relabelled dataset, and their indexes."""

from jobs.semantic.config import SemanticConfig
from jobs.semantic.job import build, run, write_report

__all__ = ["SemanticConfig", "build", "run", "write_report"]
