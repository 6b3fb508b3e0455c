"""Excitation backpropagation, a winner's probability handed down, and its contrastive form (Zhang et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.baselines.placement import AtLayer
from stages.baselines.query import Query
from stages.baselines.relevance import Affine, Relevance, Run, of_positive, vjp


class Winners:
    """P(i | j) = x_i w_ij+ / sum_i x_i w_ij+, x the activations, no biases (equations 4 and 5).

    ``contrast``: at the last learned call the same with the weights negated is taken away (section 3.4). Where that
    call is a convolution (SqueezeNet's, with pooling behind it), each of the two is shared out over all places at once,
    as if the pooling came first: within a place they would cancel whatever is there.
    """

    def __init__(self, contrast: bool) -> None:
        self.contrast = contrast

    def affine(self, call: Affine, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        if self.contrast and call.top:
            return self._handed(call, call.weight, x, relevance) - self._handed(call, -call.weight, x, relevance)
        return self._handed(call, call.weight, x, relevance)

    def _handed(self, call: Affine, weight: torch.Tensor, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        weight, x = weight.clamp(min=0), x.clamp(min=0)
        total = call.run(x, weight, None)
        if self.contrast and call.top and not call.dense:
            everywhere = (2, 3)
            share = of_positive(relevance.sum(everywhere, keepdim=True), total.sum(everywhere, keepdim=True))
            return x * call.back(weight, x, share.expand_as(total))
        return x * call.back(weight, x, of_positive(relevance, total))

    def average(self, run: Run, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        x = x.clamp(min=0)
        return x * vjp(run, x, of_positive(relevance, run(x)))

    def shares(self, terms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        positive = [term.clamp(min=0) for term in terms]
        total = torch.stack(torch.broadcast_tensors(*positive)).sum(dim=0)
        return [of_positive(term, total) for term in positive]


class ExcitationBackprop(AtLayer):
    """Marginal winning probability of each place of a layer, summed over channels; in all at most 1."""

    name = "excitation_backprop"
    passes = (1.0, 0.1)
    contrast = False

    def maps(self, query: Query) -> torch.Tensor:
        run = Relevance(query.cut, query.x, to=self.layer)
        rule = Winners(self.contrast)
        found = []
        for r in range(query.targets.shape[1]):
            start = torch.zeros_like(run.logits).scatter(1, query.targets[:, r : r + 1], 1.0)
            found.append(run.send(start, rule).sum(dim=1))
        return torch.stack(found, dim=1)


class ContrastiveMwp(ExcitationBackprop):
    """The same minus that of "not this class"; signed. What speaks for every class alike cancels."""

    name = "c_mwp"
    contrast = True
