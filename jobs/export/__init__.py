"""Boxes and masks of a finished run, in formats that annotation tools open."""

from jobs.export.detection import Detection, Exported
from jobs.export.write import Asked, export, lines

__all__ = ["Asked", "Detection", "Exported", "export", "lines"]
