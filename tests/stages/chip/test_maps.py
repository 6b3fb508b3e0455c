"""CHIP maps: sums by hand, products of clipped factors, weights found by class id and never by rank."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from stages.baselines.guided import guided_gradient
from stages.baselines.query import Query
from stages.baselines.registry import Setting, build
from stages.chip.maps import ChannelWeights, chip_map, guided, product, refined
from stages.network import cut
from stages.resize import upsample


def test_chip_map_by_hand_is_signed() -> None:
    activation = torch.tensor([[[[1.0, 0.0]], [[2.0, 3.0]]]])
    weights = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]])
    assert chip_map(activation, weights).tolist() == [[[[-1.0, -3.0]], [[4.5, 6.0]]]]
    with pytest.raises(ValueError, match="fitted on another"):
        chip_map(activation, torch.ones(1, 1, 3))


def test_two_negatives_are_no_evidence_unless_signed() -> None:
    a, b = torch.tensor([-2.0, -2.0, 3.0, 3.0]), torch.tensor([-5.0, 5.0, -5.0, 5.0])
    assert product(a, b).tolist() == [0, 0, 0, 15]
    assert product(a, b, signed=True).tolist() == [10, -10, -15, 15]


def test_upsampling_is_bilinear_between_pixel_centres() -> None:
    line = torch.tensor([[[[0.0, 4.0]]]])
    assert upsample(line, (1, 4)).tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]  # align_corners would give 0, 4/3, 8/3, 4


def test_refined_is_the_first_layers_map_times_the_upsampled_last() -> None:
    first = torch.tensor([[[[1.0, 1.0, -1.0, 1.0]]]])
    last = torch.tensor([[[[0.0, 4.0]]]])
    assert refined(first, last).tolist() == [[[[0.0, 1.0, 0.0, 4.0]]]]
    assert refined(first, last, signed=True).tolist() == [[[[0.0, 1.0, -3.0, 4.0]]]]


def test_guided_keeps_colours_and_clips_both_factors() -> None:
    gradient = torch.tensor([1.0, -1.0, 2.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 1, 2)
    heat = torch.tensor([[[[3.0, -1.0]]]])
    assert guided(gradient, heat)[0, 0, :, 0].tolist() == [[3, 0], [0, 0], [6, 0]]
    assert guided(gradient, heat, signed=True)[0, 0, :, 0].tolist() == [[3, -1], [-3, 1], [6, -2]]


def solve(*rows: tuple[str, int, list[float]]) -> pa.Table:
    names = ("layer", "class_id", "w")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def test_weights_go_by_class_id_and_a_class_without_a_fit_is_nan() -> None:
    weights = ChannelWeights.from_table(solve(("a", 7, [1, 2]), ("b", 7, [9, 9]), ("a", 3, [3, 4])), "a")
    found = weights.of(torch.tensor([[7, 3], [0, 5], [8, 900]]))
    assert found[0].tolist() == [[1, 2], [3, 4]]
    assert found[1:].isnan().all()
    heat = chip_map(torch.ones(1, 2, 2, 2), found[1:2])
    assert heat.isnan().all()
    assert product(heat, heat).isnan().all()  # clipping does not turn "no answer" into "nothing found"


def test_weights_flagged_as_saying_nothing_are_no_fit() -> None:
    flags = {1: "", 2: "no_fit_images", 3: "no_signal", 4: "not_converged"}
    table = solve(*(("a", c, [0.0, 0.0]) for c in flags)).append_column("flag", pa.array(list(flags.values())))
    found = ChannelWeights.from_table(table, "a").of(torch.tensor([[1, 2, 3, 4]]))[0].isnan().all(1)
    assert found.tolist() == [False, True, True, False]
    nothing = ChannelWeights.from_table(table.filter(pa.array([False, True, True, False])), "a")
    assert nothing.of(torch.tensor([[1, 2]])).isnan().all()


def test_a_layer_without_fits_and_a_class_fitted_twice_are_refused() -> None:
    with pytest.raises(LookupError, match=r"'c' \(fitted: a\)"):
        ChannelWeights.from_table(solve(("a", 7, [1, 2])), "c")
    with pytest.raises(ValueError, match="more than one fit"):
        ChannelWeights.from_table(solve(("a", 7, [1, 2]), ("a", 7, [1, 3])), "a")


def test_the_methods_are_their_formulas_on_a_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    rng = np.random.default_rng(0)
    fitted = {(layer, c): rng.normal(size=k) for layer, k in (("1", 5), ("4", 6)) for c in range(4)}
    table = solve(*((layer, c, w.tolist()) for (layer, c), w in fitted.items()))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[2, 0], [3, 1]])
    query = Query(cut(net, ["1", "4"], x), x, targets)
    setting = Setting(("1", "4"), tables={"solve": table})
    maps = {name: build(name, setting).maps(query) for name in ("chip", "chip:1", "refined_chip", "guided_chip")}
    with torch.no_grad():
        first, last = net[:2](x), net[:5](x)
    for i in range(2):
        for r in range(2):
            c = int(targets[i, r])
            low = sum(float(fitted["4", c][k]) * last[i, k] for k in range(6))
            high = sum(float(fitted["1", c][k]) * first[i, k] for k in range(5))
            large = upsample(low[None, None], (8, 8))[0, 0]  # type: ignore[index]
            assert torch.allclose(maps["chip"][i, r], low, atol=1e-5)  # type: ignore[arg-type]
            assert torch.allclose(maps["chip:1"][i, r], high, atol=1e-5)  # type: ignore[arg-type]
            assert torch.allclose(maps["refined_chip"][i, r], high.clamp(min=0) * large.clamp(min=0), atol=1e-5)  # type: ignore[union-attr]
            colours = guided_gradient(query)[i, r].clamp(min=0) * large.clamp(min=0)
            assert torch.allclose(maps["guided_chip"][i, r], colours.amax(dim=0), atol=1e-5)
