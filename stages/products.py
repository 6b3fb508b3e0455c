"""Dense products on the fastest kernel at hand, and the same product for many subsets of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# torch sends float32 products on a CPU to MKL, which holds back on processors of other makers: oneDNN's inner product
# was measured 2.1 to 2.4 times as fast there (AMD Zen 5), and takes transposed views without a copy.
_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x @ weight.T + bias`` as `torch.nn.functional.linear`, on oneDNN where that is possible."""
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or x.device.type != "cpu"
    if _ONEDNN is None or plain or x.dtype != torch.float32 or weight.dtype != torch.float32 or x.numel() == 0:
        return F.linear(x, weight, bias)
    # Matrices with gaps between their rows fall to a reference kernel that is a hundred times slower.
    if x.dim() != 2 or not _dense(x) or not _dense(weight):
        return F.linear(x, weight, bias)
    return _ONEDNN(x, weight, bias, "none", [], "")


def _dense(matrix: torch.Tensor) -> bool:
    return matrix.is_contiguous() or matrix.t().is_contiguous()


class SubsetProduct:
    """``x[:, S] @ weight[:, S].T + bias`` for many subsets S of the columns of one x: gates before a 1x1 convolution.

    Only the smaller of S and its complement is multiplied: ``W x_S = W x - W x_{not S}``. With CHIP's gates (m uniform
    in 1..K) that is a quarter of the multiplications, and the error stays one rounding of ``W x``.
    """

    step = 16  # subsets are padded to a multiple of this with zero columns, so that kernels see few shapes

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        # One row for each column of W, and a zero row that padding points to.
        self._rows = torch.cat([weight.t(), weight.new_zeros(1, weight.shape[0])]).contiguous()

    def __call__(self, x: torch.Tensor, gates: torch.Tensor) -> list[torch.Tensor]:
        """x (P, K), gates bool (N, K) -> N tensors (P, out), each fresh memory."""
        channels = x.shape[1]
        full = linear(x, self.weight, self.bias)
        columns = torch.cat([x.t(), x.new_zeros(1, x.shape[0])])
        negative = -columns
        closing = gates.sum(1) * 2 > channels
        chosen = gates ^ closing.unsqueeze(1)
        places = torch.arange(channels, device=x.device)
        order = torch.where(chosen, places, channels).sort(1).values
        width = (chosen.sum(1) + self.step - 1) // self.step * self.step
        out = []
        for row, count, closes in zip(order, width.clamp(max=channels).tolist(), closing.tolist(), strict=True):
            if closes and count == 0:
                out.append(full.clone())
                continue
            subset = row[: max(count, 1)]
            part = self._rows.index_select(0, subset).t()
            if closes:
                out.append(linear(negative.index_select(0, subset).t(), part, None).add_(full))
            else:
                out.append(linear(columns.index_select(0, subset).t(), part, self.bias))
        return out
