"""A network's last layer trained anew for other classes."""

from jobs.classifier.config import ClassifierConfig
from jobs.classifier.job import build, run, write_report

__all__ = ["ClassifierConfig", "build", "run", "write_report"]
