"""What the image and every layer's bias contribute to a score: one forward and one backward for a batch of images.

y = F x0 + sum_i <b_i, dy/db_i>: the input term, one term for each layer (the batch norm behind a convolution folded
into it), and one for every call whose freezing adds a constant of its own (ReLU6's saturation, an instance norm's
shift, a sigmoid's rest). They add up to the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import fx

from stages.linear.affine import BatchNorm, Weighted, channels
from stages.linear.sites import Decision, Values
from stages.linear.stream import Frozen


@dataclass(frozen=True)
class Contributions:
    """For B images and the L layers of ``names``, in the order of the network."""

    names: tuple[str, ...]
    score: torch.Tensor  # (B)
    target: torch.Tensor  # (B) class index whose logit is explained
    input: torch.Tensor  # (B) F x0
    layers: torch.Tensor  # (B, L)
    logits: torch.Tensor  # (B, C) of all classes

    @property
    def residual(self) -> torch.Tensor:
        """(B) r: the part that does not come from the image."""
        return self.layers.sum(dim=1)

    @property
    def residual_share(self) -> torch.Tensor:
        """(B) r / y; not between 0 and 1 where the parts have opposite signs, infinite or nan for y = 0."""
        return self.residual / self.score

    @property
    def residual_magnitude(self) -> torch.Tensor:
        """(B) |r| / (|F x0| + |r|), in [0, 1]; 0 where both are 0."""
        size = self.residual.abs()
        return size / (size + self.input.abs()).clamp_min(torch.finfo(size.dtype).tiny)


@dataclass(frozen=True)
class Tap:
    """A call that adds a constant: the term's name, the constant (broadcastable) and where it was added."""

    name: str
    constant: torch.Tensor
    value: torch.Tensor


class Contributing:
    """``frozen`` (see `stages.linear.scope.freeze`), ready for batches of images."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen
        self._folded = {n: conv for n in frozen.rules if (conv := _before(frozen, n)) is not None}
        self._normed = set(self._folded.values())
        graph = frozen.graph
        if len(graph.calls[graph.output].shape or ()) != 2:
            raise ValueError("contributions are to a class score: the network must give (batch, classes)")

    def __call__(self, x: torch.Tensor, target: torch.Tensor | None = None) -> Contributions:
        """``x`` (B, ...) as given to the network; ``target`` (B) classes, default each image's first."""
        x = x.detach().clone().requires_grad_(True)
        terms: dict[str, torch.Tensor] = {}
        with torch.enable_grad():
            y, taps = self.forward(x)
            if target is None:
                target = y.detach().argmax(dim=1)
            for tap in taps:
                terms.setdefault(tap.name, torch.zeros_like(y[:, 0]).detach())
                # The hook must not hold the value it hangs on: that ring would outlive the pass, graph and all.
                tap.value.register_hook(partial(_add, terms, tap.name, tap.constant))
            target = target.to(y.device)
            score = y.gather(1, target.view(-1, 1)).squeeze(1)
            # Summed, not averaged: an image's gradient does not know its batch.
            gradient = torch.autograd.grad(score.sum(), x)[0]
        names = tuple(terms)
        layers = torch.stack([terms[n] for n in names], dim=1) if names else score.detach().new_zeros(x.shape[0], 0)
        own = (gradient * x.detach()).flatten(1).sum(1)
        return Contributions(names, score.detach(), target, own, layers, y.detach())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Tap]]:
        """The network's output for ``x``, differentiable as the frozen network of each image, and its constants."""
        frozen, graph = self.frozen, self.frozen.graph
        env: Values = {graph.input: x, **graph.defaults}
        taps = []
        biases: dict[fx.Node, torch.Tensor] = {}  # of convolutions whose batch norm is still to come
        for i, node in enumerate(frozen.nodes):
            rule = frozen.rules.get(node)
            if rule is None:
                env[node] = graph.evaluate(node, env)
            else:
                site = frozen.sites[node]
                with torch.no_grad():
                    decision = self._decision(node, env)
                    constant = rule.constant(site, env, decision)
                    before = biases.pop(self._folded.get(node, node), None)
                    if before is not None and constant is not None and isinstance(rule, BatchNorm):
                        constant = constant + channels(rule.scale(site, env), site.source(env)) * before
                env[node] = site.evaluate(env) if rule.jacobian else rule.affine(site, env, decision)
                if constant is not None and node in self._normed:
                    biases[node] = constant.detach()
                elif constant is not None:
                    taps.append(Tap(self._name(node), constant.detach(), env[node]))
            frozen.release(i, env)
        found: torch.Tensor = env[graph.output]
        return found, taps

    def _decision(self, node: fx.Node, env: Values) -> Decision:
        """Masks of what saturates and what is no derivative; a plain ReLU or pooling needs none here."""
        rule, site = self.frozen.rules[node], self.frozen.sites[node]
        return rule.decide(site, env) if not rule.jacobian or site.kind in _ADDING else ()

    def _name(self, node: fx.Node) -> str:
        return self.frozen.sites[self._folded.get(node, node)].name


_ADDING = ("relu6", "hardtanh", "sigmoid", "tanh")  # whose constant depends on what is frozen


def _before(frozen: Frozen, node: fx.Node) -> fx.Node | None:
    """The convolution or linear layer a batch norm is folded into: nobody else reads it."""
    if type(frozen.rules[node]) is not BatchNorm or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    return source if isinstance(frozen.rules.get(source), Weighted) and len(source.users) == 1 else None


def _add(terms: dict[str, torch.Tensor], name: str, constant: torch.Tensor, gradient: torch.Tensor) -> None:
    gradient = gradient.detach()
    sizes = (1,) * (gradient.dim() - constant.dim()) + tuple(constant.shape)
    # A bias is one number for a whole plane: summed first, the product with it is small.
    planes = [d for d in range(1, gradient.dim()) if sizes[d] == 1 and gradient.shape[d] > 1]
    if planes:
        gradient = gradient.sum(dim=planes, keepdim=True)
    terms[name] = terms[name] + (gradient * constant).flatten(1).sum(1)
