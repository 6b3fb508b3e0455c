"""How many images of a pass are right, while training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stages.semantic.losses import NO_LABEL
from stages.semantic.rules import judge


class Tally:
    """Counts of right answers by the first of ``rules``, with the protocol's numbers; images without a coarse label are
    not judged."""

    def __init__(self, rules: tuple[str, ...]) -> None:
        self.rules = rules
        self.images = self.coarse = self.fine = self.both = 0

    def add(
        self, scores: NDArray[np.float32] | None, coarse: NDArray[np.float32], fine: Tensor, classes: Tensor
    ) -> None:
        """Fine scores [B, F] (None: no fine head), coarse logits [B, C], multi-hot labels [B, F], class ids [B]."""
        labels, ids = fine.numpy(), classes.numpy()
        for i in np.flatnonzero(ids != NO_LABEL):
            right = int(coarse[i].argmax()) == ids[i]
            self.images += 1
            self.coarse += right
            if scores is not None and self.rules:
                true = np.flatnonzero(labels[i]).tolist()
                case = judge(self.rules[0], scores[i], true, right).case
                self.fine += case.startswith("FT")
                self.both += case == "FTCT"

    def shares(self) -> dict[str, float]:
        """``coarse_accuracy``, and with a fine head ``fine_exact`` and ``ia``. Needs a judged image."""
        found = {"coarse_accuracy": self.coarse / self.images}
        if self.rules:
            found |= {"fine_exact": self.fine / self.images, "ia": self.both / self.images}
        return found
