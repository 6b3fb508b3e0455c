"""The leading singular triplets of a linear system that only answers F v and F^T u.

Two methods: the paper's power iteration with momentum and deflation, corrected (sigma = ||F v||, stopped on
||F^T u - sigma v||), and a block method that expands one search space for all triplets. Both certify what they give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Operator(Protocol):
    """What `stages.linear.scope.LinearScope` is here."""

    x0: torch.Tensor
    output: torch.Tensor

    def forward(self, v: torch.Tensor) -> torch.Tensor: ...

    def adjoint(self, u: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Triplets:
    """F v_i = sigma_i u_i, the largest first."""

    sigma: torch.Tensor  # (k)
    v: torch.Tensor  # (k, ...) eigen-inputs, orthonormal
    u: torch.Tensor  # (k, ...) eigen-outputs; 0 where sigma is 0
    residual: torch.Tensor  # (k) ||F^T u - sigma v||: some singular value lies within it of sigma
    passes: int  # probes sent through F or F^T
    converged: bool  # every residual <= tolerance * sigma_1

    @property
    def certificate(self) -> float:
        """The largest residual relative to sigma_1; 0 for F = 0."""
        top = float(self.sigma[0])
        return float(self.residual.max()) / top if top > 0 else 0.0


class _Matrix:
    """The operator on rows: (n, inputs) -> (n, outputs) and back, counting probes."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.inputs, self.outputs = operator.x0[0].numel(), operator.output[0].numel()
        self.passes = 0

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        self.passes += v.shape[0]
        return self.operator.forward(v.view(v.shape[0], *self.operator.x0.shape[1:])).flatten(1)

    def adjoint(self, u: torch.Tensor) -> torch.Tensor:
        self.passes += u.shape[0]
        return self.operator.adjoint(u.reshape(u.shape[0], *self.operator.output.shape[1:])).flatten(1)

    def draw(self, count: int, seed: int) -> torch.Tensor:
        like = self.operator.x0
        found = torch.randn(count, self.inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return found.to(like)

    def triplets(self, v: torch.Tensor, sigma: torch.Tensor, u: torch.Tensor, tolerance: float) -> Triplets:
        """With their certificates, which cost one probe each."""
        lost = sigma <= 10 * torch.finfo(sigma.dtype).eps * sigma[0]
        sigma = sigma.masked_fill(lost, 0)
        u = u.masked_fill(lost.unsqueeze(1), 0)
        residual = (self.adjoint(u) - sigma.unsqueeze(1) * v).norm(dim=1)
        return Triplets(
            sigma,
            v.view(-1, *self.operator.x0.shape[1:]),
            u.view(-1, *self.operator.output.shape[1:]),
            residual,
            self.passes,
            bool((residual <= tolerance * sigma[0]).all()),
        )


def power(
    operator: Operator,
    k: int = 1,
    *,
    tolerance: float = 1e-6,
    momentum: float = 0.9,
    limit: int = 5000,
    seed: int = 0,
) -> Triplets:
    """One triplet after another by power iteration on F^T F with momentum, earlier ones projected out.

    v_next = F^T F v - beta v_before, with beta = (``momentum`` * sigma^2 / 2)^2: as fast as if the next eigenvalue were
    at most ``momentum`` of this one, faster than the plain method (``momentum`` 0) where it is closer. A last
    Rayleigh-Ritz step on the k vectors removes what deflation with inexact vectors leaves. ``limit`` steps at most for
    each triplet: see ``converged``.

    ValueError: k is not between 1 and the number of inputs and outputs.
    """
    matrix = _asked(operator, k)
    start = matrix.draw(k, seed)
    known, images = start[:0], start.new_zeros(0, matrix.outputs)
    inner = tolerance / (2 * math.sqrt(k))
    top = 0.0
    for i in range(k):
        v = _unit(_without(start[i], known))
        before = torch.zeros_like(v)
        beta = 0.0
        for step in range(limit):
            image = matrix.forward(v.unsqueeze(0))[0]
            sigma = image.norm()  # not v^T v_next: v_next carries the momentum term
            top = max(top, float(sigma))
            if float(sigma) <= 10 * torch.finfo(v.dtype).eps * top:
                break
            back = _without(matrix.adjoint((image / sigma).unsqueeze(0))[0], known)
            if float((back - sigma * v).norm()) <= inner * top or step == limit - 1:
                break
            if step % _PLAIN == _PLAIN - 1:
                beta = (momentum * float(sigma) ** 2 / 2) ** 2
            following = _without(sigma * back - beta * before, known)
            # Both are scaled alike, so that the recurrence stays the one above.
            scale = following.norm()
            before, v = v / scale, following / scale
        known, images = torch.cat([known, v.unsqueeze(0)]), torch.cat([images, image.unsqueeze(0)])
    u, sigmas, w = torch.linalg.svd(images.t(), full_matrices=False)
    return matrix.triplets(w @ known, sigmas, u.t(), tolerance)


_PLAIN = 5  # steps after which sigma is known well enough to set the momentum by it


def block(
    operator: Operator,
    k: int = 10,
    *,
    tolerance: float = 1e-6,
    extra: int = 2,
    basis: int | None = None,
    limit: int = 200,
    seed: int = 0,
) -> Triplets:
    """All k triplets from one growing space of inputs: Rayleigh-Ritz, expanded by the residuals of the block.

    Each round sends the block through F^T and what is new of it through F (a block Lanczos method with full
    orthogonalisation); a space of more than ``basis`` vectors starts again from its best ones.

    ValueError: k is not between 1 and the number of inputs and outputs.
    """
    matrix = _asked(operator, k)
    width = min(k + extra, matrix.inputs)
    most = min(basis or max(8 * width, 60), matrix.inputs)
    q = torch.linalg.qr(matrix.draw(width, seed).t())[0].t()  # rows are orthonormal inputs
    b = matrix.forward(q)  # F q, row by row
    for round in range(limit + 1):
        u, sigma, w = torch.linalg.svd(b.t(), full_matrices=False)
        v, u, sigma = w[:width] @ q, u.t()[:width], sigma[:width]
        back = matrix.adjoint(u)
        residual = back - sigma.unsqueeze(1) * v
        done = bool((residual[:k].norm(dim=1) <= tolerance * sigma[0]).all())
        if done or round == limit or q.shape[0] == matrix.inputs:
            break
        if q.shape[0] + width > most and most < matrix.inputs:
            keep = min(2 * width, max(width, most - width), w.shape[0])
            q = w[:keep] @ q
            b = w[:keep] @ b
        new = _complement(residual, q)
        if new.shape[0] == 0:
            break
        q, b = torch.cat([q, new]), torch.cat([b, matrix.forward(new)])
    return matrix.triplets(v[:k], sigma[:k], u[:k], tolerance)


def _asked(operator: Operator, k: int) -> _Matrix:
    matrix = _Matrix(operator)
    most = min(matrix.inputs, matrix.outputs)
    if not 1 <= k <= most:
        raise ValueError(f"the system has {most} singular values: ask for 1 to {most} of them, not {k}")
    return matrix


def _without(v: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Twice, because one projection leaves rounding behind."""
    for _ in range(2 if known.shape[0] else 0):
        v = v - (known @ v) @ known
    return v


def _unit(v: torch.Tensor) -> torch.Tensor:
    return v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)


def _complement(rows: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of what ``rows`` add to the space of ``q``, without what is only rounding."""
    size = rows.norm(dim=1, keepdim=True)
    rows = rows[(size > math.sqrt(torch.finfo(rows.dtype).tiny)).squeeze(1)]
    rows = rows / rows.norm(dim=1, keepdim=True)
    for _ in range(2):
        rows = rows - (rows @ q.t()) @ q
        _, s, w = torch.linalg.svd(rows, full_matrices=False)
        rows = w[s > 1e-6 * s[:1]][: max(0, q.shape[1] - q.shape[0])]
    return rows
