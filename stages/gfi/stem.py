"""A network's first convolution, taken off it, so that what the mask cannot change is convolved once.

Both parts are the image and its background, blended: Phi = x - d and Phi_bg = p + d with d = (1 - m)(x - p). A
convolution is linear, so that of d serves both parts of every step, and those of x and p are made once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import conv2d, pad, pixel_unshuffle

from stages.gfi.mask import kept, removed
from stages.tracing import Graph


class Blend:
    """What a mask [B, 1, H, W] lets a network see of images: the two parts themselves."""

    def __init__(self, x: torch.Tensor, background: torch.Tensor) -> None:
        self.x, self.background = x, background

    def kept(self, mask: torch.Tensor) -> torch.Tensor:
        """[B, ...], as the network (or what is left of it behind its stem) reads it."""
        return kept(self.x, self.background, mask)

    def both(self, mask: torch.Tensor) -> torch.Tensor:
        """[2B, ...]: the kept parts, then the removed ones."""
        return torch.cat([self.kept(mask), removed(self.x, self.background, mask)])


class Stem:
    """A plain strided convolution of images: [B, C, H, W] -> [B, K, h, w].

    A stride of s over C channels is the same sum as a stride of 1 over C s^2 channels of an image with s x s pixels
    folded into each: kernels are made for many channels, and three waste most of what they can do.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution
        self.stride = convolution.stride[0]
        spare = [-k % self.stride for k in convolution.kernel_size]
        self.kernel = tuple((k + s) // self.stride for k, s in zip(convolution.kernel_size, spare, strict=True))
        weight = pad(convolution.weight.detach(), (0, spare[1], 0, spare[0]))
        self.weight = pixel_unshuffle(weight, self.stride).contiguous(memory_format=torch.channels_last)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x)

    def folded(self, image: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, s^2, H', W']: padded as the convolution pads."""
        sides = []
        for axis in (1, 0):
            before, size = self.convolution.padding[axis], image.shape[2 + axis]
            out = (size + 2 * before - self.convolution.kernel_size[axis]) // self.stride + 1  # type: ignore[operator]
            whole = self.stride * (out + self.kernel[axis] - 1)
            sides += [before, whole - before - size]  # type: ignore[operator]
        found = pixel_unshuffle(pad(image, sides), self.stride)  # type: ignore[arg-type]
        return found.unflatten(1, (image.shape[1], self.stride**2))

    def of_folded(self, folded: torch.Tensor) -> torch.Tensor:
        """The convolution of :meth:`folded`, without its bias."""
        weight = self.weight.to(folded.dtype)
        return conv2d(folded.flatten(1, 2).contiguous(memory_format=torch.channels_last), weight)


class StemBlend(Blend):
    """The parts as the stem hands them on, in ``dtype``: the precision of what follows."""

    def __init__(self, x: torch.Tensor, background: torch.Tensor, stem: Stem, dtype: torch.dtype) -> None:
        super().__init__(x, background)
        self.stem = stem
        self.of_x, self.of_background = stem(x).to(dtype), stem(background).to(dtype)
        self.gap = stem.folded(x - background).to(dtype)

    def _moved(self, mask: torch.Tensor) -> torch.Tensor:
        return self.stem.of_folded(self.gap * self.stem.folded(1 - mask).to(self.gap.dtype))

    def kept(self, mask: torch.Tensor) -> torch.Tensor:
        return self.of_x - self._moved(mask)

    def both(self, mask: torch.Tensor) -> torch.Tensor:
        moved = self._moved(mask)
        return torch.cat([self.of_x - moved, self.of_background + moved])


def take_stem(module: nn.Module, graph: Graph) -> Stem | None:
    """The first convolution of ``module``, an `Identity` in its place from now on; None where it is not taken.

    It is where nothing else reads the image, and it pads with zeros, alike on both sides, and strides alike in both.
    """
    readers = list(graph.input.users)
    if len(readers) != 1 or readers[0].op != "call_module":
        return None
    path = str(readers[0].target)
    found = module.get_submodule(path)
    called = sum(n.op == "call_module" and str(n.target) == path for n in graph.nodes)
    if type(found) is not nn.Conv2d or called != 1 or isinstance(found.padding, str) or found.padding_mode != "zeros":
        return None
    if found.groups != 1 or set(found.dilation) != {1} or len(set(found.stride)) != 1:
        return None
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Identity().eval())
    return Stem(found)
