"""F by automatic differentiation, where freezing is the derivative at x0."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad


class Derivative:
    """The Jacobian of ``network`` at ``x0`` (1, ...). With ``keep`` one differentiated pass serves every probe."""

    def __init__(self, network: nn.Module, x0: torch.Tensor, *, keep: bool) -> None:
        self._network, self._x0, self._keep = network, x0, keep
        if keep:
            with torch.enable_grad():
                self._x = x0.detach().clone().requires_grad_(True)
                self._y = network(self._x.clone())
                # F v as the derivative of <F^T u, v> by u: no further pass of x0.
                self._u = torch.zeros_like(self._y, requires_grad=True)
                self._g = torch.autograd.grad(self._y, self._x, self._u, create_graph=True)[0]

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        if self._keep:
            return self._many(self._g, self._u, v)
        with torch.no_grad(), forward_ad.dual_level():
            # Cloned, both: what the network does to its input in place it does to the tangent too.
            x = forward_ad.make_dual(self._x0.expand(v.shape[0], *self._x0.shape[1:]).clone(), v.clone())
            found = forward_ad.unpack_dual(self._network(x))
        return torch.zeros_like(found.primal) if found.tangent is None else found.tangent

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        if self._keep:
            return self._many(self._y, self._x, u)
        with torch.enable_grad():
            x = self._x0.expand(u.shape[0], *self._x0.shape[1:]).clone().requires_grad_(True)
            return torch.autograd.grad(self._network(x.clone()), x, u)[0]

    def _many(self, of: torch.Tensor, by: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(of, by, probes.unsqueeze(1), retain_graph=True, is_grads_batched=True)[0]
        return found.squeeze(1)
