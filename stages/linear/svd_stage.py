"""The SVD stage: for every image the leading singular triplets of an image-to-image network's linear system at it.

An eigen-input is an image that the network answers with its eigen-output, sigma times as large; together they are what
it passes on most of all. Each triplet comes with a certificate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.linear.filter_sizes import TripletSizes
from stages.linear.filters_stage import Precision, frozen_network, inputs_of, kept
from stages.linear.image_input import ImageInput
from stages.linear.scope import LinearScope, Masks
from stages.linear.stream import Frozen
from stages.linear.svd import Triplets, block, power
from stages.schema import column

Method = Literal["block", "power"]


@dataclass(frozen=True)
class SvdConfig:
    """``k`` triplets by the block method, or by the paper's power method with ``momentum``.

    ``taylor`` as for filters. ``tolerance`` is of the certificate relative to the largest singular value; ``limit`` of
    rounds (block) or of steps for each triplet (power), 0: the method's own. Iterations amplify rounding: they are done
    in float64 by default.
    """

    image: ImageInput = field(default_factory=ImageInput)
    taylor: bool = False
    k: int = 10
    method: Method = "block"
    tolerance: float = 1e-6
    momentum: float = 0.9
    limit: int = 0
    precision: Precision = "float64"
    masks: Masks = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("block", "power") or self.k < 1 or not self.tolerance > 0:
            raise ValueError(f"the method is block or power, k from 1 on, the tolerance above 0; got {self}")
        if not 0 <= self.momentum < 1 or self.limit < 0:
            raise ValueError(f"momentum is from 0 to below 1, limit from 0 on; got {self.momentum}, {self.limit}")


class SvdStage:
    """Measuring stage. Input: "network", an nn.Module in eval mode on the device; it is not changed.

    ``sizes`` says what a row will hold, where it is known already.
    """

    version = 2
    wants: ClassVar[Literal["pixels"]] = "pixels"
    schema = pa.schema(
        [
            column("sigma", pa.list_(pa.float64()), "leading singular values, the largest first", shape="[k]"),
            column("inputs", pa.list_(pa.float32()), "eigen-inputs of norm 1", shape="[k, C, H, W]"),
            column("outputs", pa.list_(pa.float32()), "eigen-outputs of norm 1", shape="[k, K, h, w]"),
            column("certificate", pa.list_(pa.float64()), "||F^T u - sigma v|| / sigma_1 of each", shape="[k]"),
            column("passes", pa.int32(), "probes sent through F or its transpose"),
            column("converged", pa.bool_(), "every certificate is within the tolerance"),
            column("input_shape", pa.list_(pa.int32()), "C, H, W"),
            column("output_shape", pa.list_(pa.int32()), "K, h, w"),
        ]
    )

    def __init__(self, config: SvdConfig, sizes: TripletSizes | None = None) -> None:
        self.config, self.sizes = config, sizes
        self.frozen: Frozen | None = None

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w]."""
        return {"pixels": self.config.image.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        """ValueError names a call that cannot be frozen."""
        self.device = device
        self.frozen = frozen_network(inputs["network"], self.config, device)

    def micro_batch(self, device: torch.device) -> int:
        """Images share nothing: each has a system of its own."""
        return 1

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.frozen is None:
            raise RuntimeError("the stage has no network yet: call setup() first")
        found = []
        for i, x0 in inputs_of(batch, self.config, self.device):
            with LinearScope(self.frozen, x0, masks=self.config.masks) as scope:
                found.append(_row(scope, self._triplets(scope, _seed(self.config.seed, batch, i))))
        return found

    def _triplets(self, scope: LinearScope, seed: int) -> Triplets:
        config = self.config
        limit: dict[str, Any] = {"limit": config.limit} if config.limit else {}
        if config.method == "power":
            options = limit | {"momentum": config.momentum}
            return power(scope, config.k, tolerance=config.tolerance, seed=seed, **options)
        return block(scope, config.k, tolerance=config.tolerance, seed=seed, **limit)


def _row(scope: LinearScope, found: Triplets) -> dict[str, Any]:
    top = float(found.sigma[0])
    if not math.isfinite(top):
        raise ValueError("the network's system at this image is not finite")
    relative = found.residual.double().cpu() / (top if top > 0 else 1.0)
    return {
        "sigma": found.sigma.double().cpu().numpy(),
        "inputs": kept(found.v),
        "outputs": kept(found.u),
        "certificate": relative.numpy(),
        "passes": found.passes,
        "converged": found.converged,
        "input_shape": np.array(scope.x0.shape[1:], np.int32),
        "output_shape": np.array(scope.output.shape[1:], np.int32),
    }


def _seed(seed: int, batch: Mapping[str, Any], i: int) -> int:
    """Of the vectors an image's iteration starts from: by (seed, split, key) alone."""
    text = "\0".join((str(seed), str(batch.get("split", "")), batch["key"][i], "svd"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
