"""LinearScope: a network at one image as a linear system, y = F x + r (PROTOCOLS section 4).

Every non-linear decision is frozen as it was at x0. The network is left as it is: no hooks, no changed modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import torch
from torch import nn

from stages.linear.derivative import Derivative
from stages.linear.stream import Beside, Decisions, Frozen, Kept
from stages.tracing import Graph

Masks = Literal["auto", "keep", "stream"]
Engine = Literal["autograd", "stream"]
Place = int | Sequence[int]
MEMORY = 2**30  # bytes for what is kept of x0, and as many again for the probes of F^T


class LinearScope:
    """``network`` (eval mode, torch.fx-traceable) frozen at ``x0`` (1, ...) or (...), the image as it is given to it.

    ``masks``: ``keep`` what is frozen, ``stream`` x0 beside the probes each time, or ``auto``: kept where it takes no
    more than ``memory`` bytes. Probes of F^T are differentiated, which keeps ``probe_bytes`` of each until it is back:
    only as many run at once as take ``memory`` bytes, but at least one. ``engine``: automatic differentiation where
    freezing equals the derivative, else the frozen stream; the stream can be asked for. ``taylor``: sigmoid and tanh by
    their tangent. A second scope of the same network can share what the first one has ``frozen``.

    ValueError: a call that cannot be frozen, by name; an engine that would give another F; a shape that does not fit.
    """

    def __init__(
        self,
        network: nn.Module | Frozen,
        x0: torch.Tensor,
        *,
        masks: Masks = "auto",
        engine: Engine | None = None,
        taylor: bool = False,
        memory: int = MEMORY,
    ) -> None:
        if masks not in ("auto", "keep", "stream") or engine not in (None, "autograd", "stream"):
            raise ValueError(f"masks are auto, keep or stream, engines autograd or stream; got {masks!r}, {engine!r}")
        if isinstance(network, nn.Module):
            network = freeze(network, x0 if x0.dim() > 3 else x0.unsqueeze(0), taylor=taylor)
        self.frozen = network
        example = self.frozen.graph.calls[self.frozen.graph.input].shape or ()
        x0 = x0.unsqueeze(0) if x0.dim() == len(example) - 1 else x0
        if x0.shape[0] != 1:
            raise ValueError(f"a scope is of one image, not of {x0.shape[0]}: make one for each")
        if engine == "autograd" and not self.frozen.jacobian:
            raise ValueError(
                "this network's frozen system is not its derivative (instance norm, sigmoid or tanh): use engine stream"
            )
        self.x0 = x0.detach()
        self.engine: Engine = engine or ("autograd" if self.frozen.jacobian else "stream")
        self.kept_bytes = self._bytes()
        self.probe_bytes = self.frozen.activation_bytes(self.x0.element_size())
        self._memory = memory
        self.masks: Literal["keep", "stream"]
        self.masks = ("keep" if self.kept_bytes <= memory else "stream") if masks == "auto" else masks
        kept = Kept(self.frozen, self.x0) if self.masks == "keep" and self.engine == "stream" else None
        with torch.no_grad():
            self.output = self.frozen.graph.module(self.x0.clone()) if kept is None else kept.output
        self._kept = kept
        self._derivative: Derivative | None = None
        if self.engine == "autograd":
            self._derivative = Derivative(self.frozen.graph.module, self.x0, keep=self.masks == "keep")
        self._transposed: tuple[torch.Tensor, torch.Tensor] | None = None
        self._open = True

    def __enter__(self) -> LinearScope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all that was kept; no further question is answered."""
        self._kept = self._derivative = self._transposed = None
        self._open = False

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """F v for probes (N, ...) of the image's shape."""
        v = self._probes(v, self.x0)
        if self._derivative is not None:
            return self._derivative.forward(v).detach()
        with torch.no_grad():
            return self.frozen.run(v, self._decisions(), constants=False)

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        """F^T u for probes (N, ...) of the output's shape."""
        u = self._probes(u, self.output)
        if self._derivative is not None and self.masks == "keep":
            return self._derivative.adjoint(u).detach()  # one graph, of x0, serves all probes
        most = max(1, self._memory // max(1, self.probe_bytes))
        parts = [self._back(part) for part in u.split(most)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _back(self, u: torch.Tensor) -> torch.Tensor:
        """F^T u for as many probes as one differentiated pass takes."""
        if self._derivative is not None:
            return self._derivative.adjoint(u).detach()
        if self._transposed is None or self._transposed[0].shape[0] != u.shape[0]:
            self._transposed = None
            with torch.enable_grad():
                v = torch.zeros(u.shape[0], *self.x0.shape[1:], dtype=u.dtype, device=u.device, requires_grad=True)
                pair = (v, self.frozen.run(v, self._decisions(), constants=False))
            # Kept for as many probes again where it fits beside the masks.
            if self.masks == "stream" or self.kept_bytes + u.shape[0] * self.probe_bytes > self._memory:
                return torch.autograd.grad(pair[1], pair[0], u)[0]
            self._transposed = pair
        return torch.autograd.grad(self._transposed[1], self._transposed[0], u, retain_graph=True)[0]

    def frozen_output(self, x: torch.Tensor) -> torch.Tensor:
        """F x + r for images (N, ...), bias by bias as the network adds them."""
        x = self._probes(x, self.x0)
        with torch.no_grad():
            return self.frozen.run(x, self._decisions(), constants=True)

    def residual(self) -> torch.Tensor:
        """r (1, ...): the frozen network's output for the zero image."""
        return self.frozen_output(torch.zeros_like(self.x0))

    def row(self, place: Place) -> torch.Tensor:
        """What output ``place`` (a flat index or coordinates) reads: F^T e, of the image's shape without batch axis."""
        return self.adjoint(impulses([place], self.output))[0]

    def column(self, place: Place) -> torch.Tensor:
        """What input ``place`` writes: F e, of the output's shape without batch axis."""
        return self.forward(impulses([place], self.x0))[0]

    def _decisions(self) -> Decisions:
        return self._kept if self._kept is not None else Beside(self.frozen, self.x0)

    def _probes(self, probes: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if not self._open:
            raise ValueError("this scope is closed: ask within its `with` block")
        if probes.shape[1:] != like.shape[1:]:
            raise ValueError(f"probes are (N, {', '.join(map(str, like.shape[1:]))}), got {tuple(probes.shape)}")
        return probes.to(like)

    def _bytes(self) -> int:
        if self.engine == "stream":
            return self.frozen.kept_bytes(self.x0.element_size())
        # A differentiated pass keeps every call's value.
        sizes = (torch.Size(c.shape).numel() for c in self.frozen.graph.calls.values() if c.shape)
        return sum(sizes) * self.x0.element_size()


def freeze(network: nn.Module, example: torch.Tensor, *, taylor: bool = False) -> Frozen:
    """Trace ``network`` once; scopes of many images of ``example``'s shape can share what this gives."""
    return Frozen(Graph(network, example, logits=False), taylor=taylor)


def impulses(places: Sequence[Place], like: torch.Tensor) -> torch.Tensor:
    """One unit impulse for each place (a flat index or coordinates), of the shape of ``like`` (1, ...)."""
    shape = like.shape[1:]
    flat = []
    for place in places:
        index = [place] if isinstance(place, int) else list(place)
        sizes = [math.prod(shape)] if isinstance(place, int) else list(shape)
        if len(index) != len(sizes) or not all(0 <= i < size for i, size in zip(index, sizes, strict=True)):
            raise LookupError(f"{place} is no place of {tuple(shape)}: give a flat index or one index for each axis")
        at = 0
        for i, size in zip(index, sizes, strict=True):
            at = at * size + i
        flat.append(at)
    found = torch.zeros(len(flat), math.prod(shape), dtype=like.dtype, device=like.device)
    found[torch.arange(len(flat)), torch.tensor(flat)] = 1
    return found.view(len(flat), *shape)
