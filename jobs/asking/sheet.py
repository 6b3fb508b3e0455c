"""One image's conversation for a page: answers above, pictures in the middle, questions below, step by step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.blocks import Picture
from pipeline.report.film import Film, Frame
from pipeline.report.images import DataImage, jpeg, png
from pipeline.report.wording import show

_LARGE = 160  # pixels a side; larger pictures are JPEGs
_PLACES = (("upper", "middle", "lower"), ("left", "centre", "right"))


@dataclass(frozen=True)
class Conversation:
    """T answers about one image. Pictures are uint8 [3, h, w]; ``own``: the answers that are a user's, from 1 on."""

    key: str
    seen: np.ndarray
    pictures: np.ndarray  # [T + 1, 3, h, w]
    questions: np.ndarray  # [T, h', w'] in 0..1
    colours: np.ndarray  # uint8 [T, 3]
    truth: np.ndarray
    psnr: Sequence[float]
    own: Collection[int] = ()


def film(found: Conversation) -> Film:
    """The conversation from what the network sees to the picture itself."""
    frames = [Frame("It sees", _picture(found.seen, f"what the network sees of {found.key}"))]
    for number, picture in enumerate(found.pictures):
        told = {}
        if number:
            red, green, blue = (int(value) for value in found.colours[number - 1])
            swatch = f"#{red:02x}{green:02x}{blue:02x}"
            told = {"swatch": swatch, "said": f"{swatch}, yours" if number in found.own else swatch}
        below = _question(found, number + 1) if number < len(found.questions) else None
        after = f"{found.key} {_after(number)}"
        shown = _picture(picture, after, decibels(found.psnr[number]))
        frames.append(Frame(f"Answer {number}" if number else "No answer", shown, **told, below=below))
    frames.append(Frame("The picture", _picture(found.truth, f"{found.key} itself")))
    return Film(frames, f"Questions and answers of {found.key}.", found.key)


def where(question: np.ndarray) -> str:
    """For those who cannot see it: how much of the picture is asked about, and where about."""
    total = float(question.sum())
    if total <= 0:
        return "asks about nothing"
    share = total / question.size / float(question.max())
    places = []
    for axis, names in enumerate(_PLACES):
        size = question.shape[axis]
        centre = float((question.sum(1 - axis) * (np.arange(size) + 0.5)).sum() / total) / size
        places.append(names[min(2, int(3 * centre))])
    return f"asks about {100 * share:.0f} % of the picture, on average at its {' '.join(places)}"


def _after(number: int) -> str:
    return "without answers" if number == 0 else f"after {number} answer{'s' * (number > 1)}"


def decibels(psnr: float) -> str:
    """As people read it; without any error it is infinite."""
    return f"{show(psnr, 1)} dB" if np.isfinite(psnr) else "no error"


def _question(found: Conversation, number: int) -> Picture:
    """Up to its largest value: only the shape of a question counts."""
    asked = found.questions[number - 1].astype(np.float64)
    grey = np.rint(255 * asked / (asked.max() or 1)).astype(np.uint8)
    return Picture(png(grey), f"question {number} about {found.key}: {where(asked)}", note=f"question {number}")


def _picture(pixels: np.ndarray, alt: str, note: str = "") -> Picture:
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return Picture(_data(image), alt, note=note)


def _data(image: np.ndarray) -> DataImage:
    return jpeg(image, quality=90) if max(image.shape[:2]) > _LARGE else png(image)
