"""Labels of both levels as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.semantic.losses import NO_LABEL


def targets(
    fine: Sequence[Sequence[int]], coarse: Sequence[int | None], fine_classes: int, coarse_classes: int
) -> dict[str, Tensor]:
    """Class ids per image -> ``fine`` uint8 multi-hot [N, F] and ``coarse`` int64 [N], -1 where there is none.

    ValueError where an id is not one of the classes.
    """
    if len(fine) != len(coarse):
        raise ValueError(f"{len(fine)} images with fine labels and {len(coarse)} with coarse ones: give both for each")
    hot = torch.zeros((len(fine), fine_classes), dtype=torch.uint8)
    ids = torch.full((len(coarse),), NO_LABEL, dtype=torch.int64)
    for i, (several, one) in enumerate(zip(fine, coarse, strict=True)):
        for f in several:
            if not 0 <= f < fine_classes:
                raise ValueError(f"image {i} has the fine class {f}, and there are {fine_classes}: give them all")
            hot[i, f] = 1
        if one is not None:
            if not 0 <= one < coarse_classes:
                raise ValueError(f"image {i} has the coarse class {one}, and there are {coarse_classes}: give them all")
            ids[i] = one
    return {"fine": hot, "coarse": ids}
