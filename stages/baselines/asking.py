"""Which classes of an image are asked for, and which objects of its truth each of them stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Asked = Literal["label", "predicted", "present"]
Pair = tuple[int, tuple[int, ...]]  # a class of the network, and the classes of the truth it stands for


def classes_asked(
    rows: Sequence[Mapping[str, Any] | None],
    probabilities: NDArray[Any],
    asks: Asked,
    objects: Mapping[int, tuple[int, ...]],
    most: int,
) -> list[list[Pair]]:
    """For each row the pairs that are asked, the first being the one localization is judged by; never none.

    Without ``objects`` a class stands for itself. With it, a class of the truth is asked as the likeliest of the
    network's classes that stand for it; classes that nothing stands for are passed over, and a row of such classes
    alone is asked the predicted one, for no object. ``predicted`` is asked for the objects of the true class.
    """
    return [_of_row(row or {}, p, asks, objects, most) for row, p in zip(rows, probabilities, strict=True)]


def _of_row(
    row: Mapping[str, Any], p: NDArray[Any], asks: Asked, objects: Mapping[int, tuple[int, ...]], most: int
) -> list[Pair]:
    predicted = int(p.argmax())
    label = row.get("label")
    if asks == "predicted" or label is None:
        true = predicted if label is None else int(label)  # whose objects the predicted class's map should find
        return [(predicted, objects.get(true, ()) if objects else (true,))]
    if asks == "label":
        wanted = [label]
    else:  # the label first, so that it is what localization is judged by
        present = sorted(set(row.get("labels") or [*(row.get("box_labels") or [])]))
        wanted = [label, *(c for c in present if c != label)]
    found = [pair for c in wanted if (pair := _standing_for(c, p, objects)) is not None][:most]
    return found or [(predicted, ())]


def _standing_for(truth: int, p: NDArray[Any], objects: Mapping[int, tuple[int, ...]]) -> Pair | None:
    if not objects:
        if not 0 <= truth < len(p):
            raise ValueError(f"label {truth} is no class of the network's {len(p)}: map them with 'objects'")
        return truth, (truth,)
    mine = [c for c, of in objects.items() if truth in of and c < len(p)]
    return (max(mine, key=lambda c: (float(p[c]), -c)), (truth,)) if mine else None


def judged_class(
    row: Mapping[str, Any], asks: Asked, objects: Mapping[int, tuple[int, ...]], first: Pair
) -> int | None:
    """The class of the truth that localization is judged by: that of the first pair; None where there is no label."""
    label = row.get("label")
    if label is None:
        return None
    return first[1][0] if objects and asks != "predicted" and first[1] else int(label)


def right_rank(
    ranked: NDArray[np.int64], judged: int | None, asks: Asked, objects: Mapping[int, tuple[int, ...]]
) -> int | None:
    """Rank of the first of the predicted classes that is the one judged by, -1 if none is; None where there is none."""
    if judged is None:
        return None
    for rank, c in enumerate(ranked.tolist()):
        if (judged in objects.get(c, ())) if objects and asks != "predicted" else c == judged:
            return rank
    return -1
