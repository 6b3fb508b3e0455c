"""Layer-wise relevance propagation (Bach et al. 2015), conserving through residual sums, concatenations, batch norms.

captum's does not conserve on ResNets and refuses functional ReLUs; see `stages.baselines.relevance` for how it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from stages.baselines.placement import AtImage
from stages.baselines.query import Query
from stages.baselines.relevance import Affine, Relevance, Run, away_from_zero, of_positive, vjp

RuleName = Literal["composite", "epsilon", "alpha_beta"]


class Shares:
    """The rules of LRP; z_ij = x_i w_ij.

    ``epsilon``: z_ij / (z_j + epsilon sign z_j), z_j with its bias. ``alpha_beta``: alpha z_ij+ / z_j+ - (alpha - 1)
    z_ij- / z_j-; where all terms have one sign they take all; alpha = 1 is the z+ rule. ``composite``: epsilon for
    linear layers, z+ for convolutions (Kohlbrenner et al. 2020). A bias keeps its share: the input's relevances add up
    to the score where all biases are 0.
    """

    def __init__(self, rule: RuleName = "composite", epsilon: float = 1e-6, alpha: float = 2.0) -> None:
        if rule not in ("composite", "epsilon", "alpha_beta"):
            raise ValueError(f"lrp has no rule {rule!r}: use composite, epsilon or alpha_beta")
        if epsilon <= 0 or alpha < 1:
            raise ValueError(f"lrp takes epsilon > 0 and alpha >= 1, got {epsilon} and {alpha}")
        self.rule, self.epsilon = rule, epsilon
        self.alpha = 1.0 if rule == "composite" else alpha

    def affine(self, call: Affine, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        if self.rule == "epsilon" or (self.rule == "composite" and call.dense):
            share = relevance / away_from_zero(call.run(x, call.weight, call.bias), self.epsilon)
            return x * call.back(call.weight, x, share)
        positive, negative = _Terms(call, x, 1.0), _Terms(call, x, -1.0)
        up, down = positive.total > 0, negative.total > 0
        both = up & down
        found = positive.hand(relevance * torch.where(both, self.alpha, up.to(x.dtype)), self.epsilon)
        if self.alpha > 1 or bool((~up & (relevance != 0)).any()):
            share = torch.where(both, 1 - self.alpha, (down & ~up).to(x.dtype))
            found = found + negative.hand(relevance * share, self.epsilon)
        return found

    def average(self, run: Run, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        if self.rule == "epsilon":
            return x * vjp(run, x, relevance / away_from_zero(run(x), self.epsilon))
        high, low = x.clamp(min=0), -x.clamp(max=0)
        up, down = run(high), run(low)
        both = (up > 0) & (down > 0)
        toward = of_positive(relevance * torch.where(both, self.alpha, 1.0), up)
        against = of_positive(relevance * torch.where(both, 1 - self.alpha, (up <= 0).to(x.dtype)), down)
        return high * vjp(run, x, toward) + low * vjp(run, x, against)

    def shares(self, terms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        total = away_from_zero(torch.stack(torch.broadcast_tensors(*terms)).sum(dim=0), self.epsilon)
        return [term / total for term in terms]


class _Terms:
    """The terms of one sign of an affine call, as positive numbers: x and w agree in sign, or they do not."""

    def __init__(self, call: Affine, x: torch.Tensor, sign: float) -> None:
        self.call, self.high, self.low = call, x.clamp(min=0), x.clamp(max=0)
        self.up, self.down = (sign * call.weight).clamp(min=0), (sign * call.weight).clamp(max=0)
        bias = None if call.bias is None else (sign * call.bias).clamp(min=0)
        self.total = call.run(self.high, self.up, bias) + call.run(self.low, self.down, None)

    def hand(self, relevance: torch.Tensor, epsilon: float) -> torch.Tensor:
        share = relevance / (self.total + epsilon)
        return self.high * self.call.back(self.up, self.high, share) + self.low * self.call.back(
            self.down, self.low, share
        )


class Lrp(AtImage):
    """Relevance of each pixel for the target's logit, summed over colours; signed."""

    name = "lrp"
    passes = (1.0, 3.0)

    def __init__(self, *, rule: RuleName = "composite", epsilon: float = 1e-6, alpha: float = 2.0) -> None:
        self.shares = Shares(rule, epsilon, alpha)

    def maps(self, query: Query) -> torch.Tensor:
        return self.relevance(query).sum(dim=2)

    def relevance(self, query: Query) -> torch.Tensor:
        """Per colour: [B, R, 3, h, w]."""
        run = Relevance(query.cut, query.x)
        found = []
        for r in range(query.targets.shape[1]):
            asked = query.targets[:, r : r + 1]
            start = torch.zeros_like(run.logits).scatter(1, asked, run.logits.gather(1, asked))
            found.append(run.send(start, self.shares))
        return torch.stack(found, dim=1)
