"""The sums of CHIP's fit as tensors: one Gram matrix per class, added up image by image in float64.

Only f depends on the class, so P_s = sum_n h(d_n) z z' is formed once per image (z = d * a) and spread over the classes
by one GEMM of f against images x K^2. Gates shared by all images factorise further: sum_s f P_s = D * sum_s f a a' with
D = sum_n h(d_n) d_n d_n' (elementwise product), so D enters once, at the end.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

PANEL = 64  # rows of the Gram matrix formed at a time; only columns from a panel's first row on are kept


@dataclass
class State:
    """Running sums of a block; axis 0 is the part (0 fit, 1 held out), axis 1 the class.

    ``panels[i]`` float64 [2, C, p, K - i p] holds rows i p to i p + p of the Gram matrices from the diagonal block on;
    ``b`` float64 [2, C, K]; ``sums`` float64 [2, C, 5]: sum h f, sum h f g^2, sum h f g, sum f, sum f^2;
    ``images`` int64 [2, C] counts the images that list the class.
    """

    block: tuple[str, int, int]
    panels: list[torch.Tensor]
    b: torch.Tensor
    sums: torch.Tensor
    images: torch.Tensor

    @classmethod
    def zeros(cls, block: tuple[str, int, int], channels: int, device: torch.device) -> State:
        classes = block[2] - block[1]
        return cls(
            block,
            [
                torch.zeros(2, classes, min(PANEL, channels - i), channels - i, dtype=torch.float64, device=device)
                for i in range(0, channels, PANEL)
            ],
            torch.zeros(2, classes, channels, dtype=torch.float64, device=device),
            torch.zeros(2, classes, 5, dtype=torch.float64, device=device),
            torch.zeros(2, classes, dtype=torch.int64, device=device),
        )

    def __getstate__(self) -> dict[str, Any]:
        # Between processes as numpy arrays, which need not be copied into the message nor out of it; and on the host,
        # since not every machine has this one's GPU.
        host = {name: getattr(self, name).cpu().numpy() for name in ("b", "sums", "images")}
        return {"block": self.block, "panels": [panel.cpu().numpy() for panel in self.panels], **host}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that such an array is read-only: merging does not write to it
            self.block = state["block"]
            self.panels = [torch.from_numpy(panel) for panel in state["panels"]]
            self.b, self.sums, self.images = (torch.from_numpy(state[name]) for name in ("b", "sums", "images"))

    def merge(self, other: State) -> State:
        """``self`` plus ``other``, neither of them changed."""

        def plus(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return mine + theirs.to(mine.device)

        panels = [plus(mine, theirs) for mine, theirs in zip(self.panels, other.panels, strict=True)]
        b, sums, images = plus(self.b, other.b), plus(self.sums, other.sums), plus(self.images, other.images)
        return State(self.block, panels, b, sums, images)


def state_bytes(classes: int, channels: int) -> int:
    """Bytes of a State, exactly."""
    panels = sum(min(PANEL, channels - i) * (channels - i) for i in range(0, channels, PANEL))
    return 2 * 8 * classes * (panels + channels + 6)


def gate_weights(gates: torch.Tensor, sigma2: float) -> torch.Tensor:
    """h(d) = exp(-||d - 1||^2 / sigma^2) of gates [..., K]: float64 [...]; the norm counts the closed channels."""
    closed = gates.shape[-1] - gates.sum(-1)
    return torch.exp(-closed.double() / sigma2)


def accumulate(
    state: State,
    part: int,
    gates: torch.Tensor,
    sigma2: float,
    a: torch.Tensor,
    f: torch.Tensor,
    g: torch.Tensor,
    listed: torch.Tensor,
    classes: torch.Tensor,
    *,
    shared: bool,
) -> None:
    """Add S images to ``part``: gates bool [S, N, K] (with ``shared`` [1, N, K]), a [S, K], f and listed [S, P] and
    g [S, N, P] for the P classes of the block that ``classes`` (places, increasing) names; float64 on one device."""
    h = gate_weights(gates, sigma2)
    d = gates.double()
    z = d * a[:, None, :]
    hz = h[:, :, None] * (a[:, None, :] if shared else z)
    weighted = f[:, None, :] * g
    state.b[part].index_add_(0, classes, torch.mm(weighted.flatten(0, 1).T, (h[:, :, None] * z).flatten(0, 1)))
    hf = h.expand(len(a), -1).sum(1)[:, None] * f
    hfg = h[:, :, None] * weighted
    sums = torch.stack([hf.sum(0), (hfg * g).sum((0, 1)), hfg.sum((0, 1)), f.sum(0), (f * f).sum(0)], dim=-1)
    state.sums[part].index_add_(0, classes, sums)
    state.images[part].index_add_(0, classes, listed.sum(0))
    for i, panel in enumerate(state.panels):
        lo = i * PANEL
        hi = lo + panel.shape[2]
        if shared:
            products = a[:, lo:hi, None] * a[:, None, lo:]
        else:
            products = torch.bmm(hz[:, :, lo:hi].transpose(1, 2), z[:, :, lo:])
        flat = panel[part].view(panel.shape[1], -1)
        if len(classes) == len(flat):
            flat.addmm_(f.T, products.flatten(1))
        else:
            flat.index_add_(0, classes, torch.mm(f.T, products.flatten(1)))


def grams(state: State, part: int, place: int, shared_gates: torch.Tensor | None, sigma2: float) -> np.ndarray:
    """One class's Gram matrix, upper triangle by rows: float64 [K(K+1)/2]. ``shared_gates`` bool [N, K] puts D in."""
    rows = []
    for i, panel in enumerate(state.panels):
        block = panel[part, place]
        if shared_gates is not None:
            d = shared_gates.to(block.device).double()
            lo = i * PANEL
            block = block * (
                (gate_weights(shared_gates, sigma2).to(d)[:, None] * d[:, lo : lo + len(block)]).T @ d[:, lo:]
            )
        host = block.cpu().numpy()
        rows += [host[r, r:] for r in range(len(host))]
    return np.concatenate(rows)


@functools.lru_cache(maxsize=4)
def packed_places(channels: int) -> np.ndarray:
    """Where entry (i, j) of a symmetric matrix lies in its upper triangle by rows: int64 [K, K]."""
    i = np.arange(channels)
    low, high = np.minimum(i[:, None], i), np.maximum(i[:, None], i)
    return low * channels - low * (low + 1) // 2 + high


def unpack(packed: np.ndarray, channels: int) -> np.ndarray:
    """The symmetric matrix [K, K] of an upper triangle by rows [K(K+1)/2]."""
    return np.take(packed, packed_places(channels))
