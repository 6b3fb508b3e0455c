"""GFI behind the registry's signature: the same masks as the stage's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stages.baselines.query import Query
from stages.baselines.registry import Setting, build, layers_of
from stages.gfi.background import blurred, noise
from stages.gfi.explainer import Explainer
from stages.gfi.recipe import recipe
from stages.network import cut

SHORT = {"gfi": {"steps": (2, 3)}}


def query(network: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> Query:
    keys = tuple(f"{i}" for i in range(len(x)))
    with torch.no_grad():
        return Query(cut(network, ("last_conv",), x[:1]), x, targets, keys=keys, seed=5)


def test_maps_are_the_masks_of_every_image_and_class(
    small: Callable[..., nn.Module], images: Callable[..., torch.Tensor]
) -> None:
    x = images(3).float()
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    maps = build("gfi", Setting(options=SHORT)).maps(query(small(), x, targets))
    assert maps.shape == (3, 2, 32, 32)
    made = Explainer(small(), x[:1], recipe("paper", steps=(2, 3)))
    begun = made.begin(x, blurred(x))
    for rank in range(2):
        assert torch.equal(maps[:, rank], begun.problem.mask(made.answer(begun, targets[:, rank]).w)[:, 0])


def test_options_choose_preset_background_and_layers(
    small: Callable[..., nn.Module], images: Callable[..., torch.Tensor]
) -> None:
    x = images(2).float()
    asked = query(small(), x, torch.tensor([[0], [1]]))
    options = {"gfi": {"preset": "authors", "background": "noise", "steps": [1, 1]}}
    maps = build("gfi:2", Setting(options=options)).maps(asked)
    made = Explainer(small(), x[:1], recipe("authors", steps=(1, 1)), mask_layer="2")
    begun = made.begin(x, noise(5, ("0", "1"), (3, 32, 32)))
    assert torch.equal(maps[:, 0], begun.problem.mask(made.answer(begun, torch.tensor([0, 1])).w)[:, 0])
    with pytest.raises(ValueError, match="no option 'gama'"):
        build("gfi", Setting(options={"gfi": {"gama": 1.0}}))


def test_it_taps_nothing_of_the_shared_pass_and_says_what_it_costs() -> None:
    assert layers_of(("gfi",), ("last_conv",)) == ()
    assert build("gfi", Setting()).passes == (153.0, 150.0)


def test_a_mask_that_is_no_number_is_no_answer(
    small: Callable[..., nn.Module], images: Callable[..., torch.Tensor]
) -> None:
    x = images(2).float()
    x[1, 0, 0, 0] = float("nan")
    maps = build("gfi", Setting(options=SHORT)).maps(query(small(), x, torch.tensor([[0], [1]])))
    assert torch.isfinite(maps[0]).all()
    assert torch.isnan(maps[1]).all()
