"""The optimised mask, "meaningful perturbation" (Fong and Vedaldi 2017): the least that must go to end the score."""

from __future__ import annotations

import torch

from stages.baselines.frozen import Freezer, Frozen
from stages.baselines.placement import AtImage
from stages.baselines.query import Query
from stages.blur import gaussian_blur
from stages.gfi.stem import Blend
from stages.resize import upsample


class OptimisedMask(AtImage):
    """1 - m of the mask m that is learned, [B, R, side, side], in 0..1.

    minimise area * mean|1 - m| + smooth * sum |grad m|^3 / pixels + softmax_c(m x + (1 - m) blur(x)), the paper's
    equation 6 with means over the mask's pixels, so that neither weight depends on ``side``; Adam, m clipped to 0..1
    after every step. What differs from the paper: m starts at 1/2, not at the smallest disc that ends the score; it is
    neither shifted at random nor smoothed when it is enlarged; and the weights are those that serve means. ``blur`` is
    the Gaussian's sigma in pixels of the input. Every (image, class) is an optimisation of its own: losses are summed,
    never averaged over them.
    """

    name = "optimised_mask"

    def __init__(
        self,
        *,
        steps: int = 300,
        side: int = 28,
        rate: float = 0.1,
        area: float = 0.3,
        smooth: float = 5.0,
        blur: float = 10.0,
    ) -> None:
        if steps < 1 or side < 2 or rate <= 0 or area < 0 or smooth < 0 or blur <= 0:
            raise ValueError("optimised_mask takes steps >= 1, side >= 2, rate and blur > 0, area and smooth >= 0")
        self.steps, self.side, self.rate = steps, side, rate
        self.area, self.smooth, self.blur = area, smooth, blur
        self.passes = (float(steps), float(steps))
        self._frozen = Freezer()

    def maps(self, query: Query) -> torch.Tensor:
        asked = query.targets.shape[1]
        x = query.x.detach().repeat_interleave(asked, dim=0)
        away = gaussian_blur(query.x.detach(), self.blur).repeat_interleave(asked, dim=0)
        classes = query.targets.flatten()[:, None]
        frozen = self._frozen.of(query)
        blend = frozen.blend(x, away)
        mask = x.new_full((len(x), 1, self.side, self.side), 0.5).requires_grad_(True)
        optimiser = torch.optim.Adam([mask], lr=self.rate)
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = self.losses(frozen, blend, classes, mask).sum()
            (mask.grad,) = torch.autograd.grad(loss, mask)
            optimiser.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        return 1 - mask.detach().view(-1, asked, self.side, self.side)

    def losses(self, frozen: Frozen, blend: Blend, classes: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One loss for each row: [n]."""
        large = upsample(mask, (blend.x.shape[2], blend.x.shape[3]))
        kept = frozen.probabilities(blend.kept(large), classes)[:, 0]
        down, right = mask.diff(dim=2).abs() ** 3, mask.diff(dim=3).abs() ** 3
        rough = (down.sum(dim=(1, 2, 3)) + right.sum(dim=(1, 2, 3))) / mask[0].numel()
        return self.area * (1 - mask).abs().mean(dim=(1, 2, 3)) + self.smooth * rough + kept
