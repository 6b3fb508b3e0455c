"""The stages of filters and svd: what stands in their rows, against one impulse after another and the whole matrix."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_cases import close
from torch import nn

from pipeline.models import ModelSpec, load
from stages.linear.filter_sizes import filter_sizes, spread
from stages.linear.filters_stage import FiltersConfig, FiltersStage
from stages.linear.image_input import ImageInput
from stages.linear.networks.bicubic import bicubic
from stages.linear.networks.pixelshuffle import pixel_shuffle
from stages.linear.scope import LinearScope, freeze
from stages.linear.svd_stage import SvdConfig, SvdStage
from stages.preprocess import Preprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "frame": "squash"}


def of_size(height: int, width: int, colour: str = "luminance") -> ImageInput:
    return ImageInput(Preprocess(size=(height, width), **PLAIN), colour)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows(stage: Any, network: nn.Module, pictures: list[np.ndarray], padding: int = 0) -> list[dict[str, Any]]:
    """What the stage says of these pictures, in one batch with so many empty places before them."""
    stage.setup(torch.device("cpu"), {"network": network})
    pixels = np.stack([stage.prepare(p, {})["pixels"] for p in pictures])
    pixels = np.concatenate([np.zeros((padding, *pixels.shape[1:]), np.uint8), pixels])
    valid = np.arange(len(pixels)) >= padding
    keys = ["" if i < padding else f"image {i - padding}" for i in range(len(pixels))]
    found = stage({"pixels": pixels, "valid": valid, "key": keys, "split": "images", "rows": [{}] * len(pixels)})
    for row in found:
        assert set(row) == set(stage.schema.names)
    return found


def whole(row: dict[str, Any], name: str, i: int) -> np.ndarray:
    """The i-th row or column as a whole image, from its patch and corner; nothing may lie outside."""
    shape = tuple(row["input_shape" if name == "row" else "output_shape"])
    patch, (top, left) = row[f"{name}_values"][i], row[f"{name}_corner"][i]
    _, height, width = tuple(row[f"{name}_patch_shape"])
    assert patch.shape == tuple(row[f"{name}_patch_shape"])
    room = np.zeros((shape[0], shape[1] + 2 * height, shape[2] + 2 * width), np.float32)
    room[:, top + height : top + 2 * height, left + width : left + 2 * width] = patch
    inside = room[:, height : height + shape[1], width : width + shape[2]]
    assert np.count_nonzero(room) == np.count_nonzero(inside)
    return inside


def real(folder: Path, name: str) -> nn.Module:
    maker = name.partition("_")[0].lower()
    sizes = {"first": 22, "second": 12} if maker == "espcn" else {}
    return load(
        ModelSpec(
            name=f"stages.linear.networks.{maker}:{maker}",
            arguments={"scale": 2, **sizes},
            weights=str(folder / "sr" / f"{name}.safetensors"),
        ),
        probe=False,
    ).module


@pytest.mark.parametrize("size", [(20, 18), (8, 9)])
@pytest.mark.parametrize("name", ["ESPCN_s2_D22_S12", "FSRCNN_s2_D56_S12_M4"])
def test_real_networks_equal_impulse_by_impulse(real_data: Path, name: str, size: tuple[int, int]) -> None:
    """Every 7th row and column, on an image larger than the field of 9 to 15 pixels and on a smaller one."""
    network, image = real(real_data, name), of_size(*size)
    stage = FiltersStage(FiltersConfig(image, precision="float64", batch=7))
    (row,) = rows(stage, network, [picture(40, 50)])
    assert row["bounded"]
    assert stage.sizes is not None
    assert stage.sizes.whole == (size == (8, 9))
    x0 = image.tensor(torch.from_numpy(stage.prepare(picture(40, 50), {})["pixels"])[None])
    scope = LinearScope(copy.deepcopy(network).double(), x0)
    assert np.array_equal(row["output"], scope.output.float().numpy())
    assert np.array_equal(row["residual"], scope.residual().float().numpy())
    for kind, single, shape in (("row", scope.row, scope.output), ("column", scope.column, scope.x0)):
        places = row[f"{kind}_places"]
        assert np.array_equal(places, np.argwhere(np.ones(shape.shape[1:])))
        for i in range(0, len(places), 7):
            assert close(torch.tensor(whole(row, kind, i)).double(), single(places[i].tolist()), 1e-6)


def test_a_curve_by_its_tangent_is_the_jacobian(real_data: Path) -> None:
    network = real(real_data, "ESPCN_s2_D22_S12")
    (row,) = rows(FiltersStage(FiltersConfig(of_size(11, 12), taylor=True)), network, [picture(11, 12)])
    jacobian = torch.autograd.functional.jacobian(network, torch.from_numpy(row["input"])).flatten(0, 3).flatten(1)
    found = np.stack([whole(row, "row", i).ravel() for i in range(len(row["row_places"]))])
    np.testing.assert_allclose(found, jacobian.numpy(), atol=1e-5)


def test_rows_and_columns_are_one_matrix() -> None:
    """column(k)[j] = row(j)[k], and F x0 + residual = output."""
    torch.manual_seed(0)
    network = pixel_shuffle(2, width=8).eval()
    (row,) = rows(FiltersStage(FiltersConfig(of_size(14, 13))), network, [picture(14, 13)])
    matrix = np.stack([whole(row, "row", i).ravel() for i in range(len(row["row_places"]))])
    columns = np.stack([whole(row, "column", i).ravel() for i in range(len(row["column_places"]))])
    assert matrix.shape == (4 * 14 * 13, 14 * 13)
    np.testing.assert_allclose(columns.T, matrix, atol=1e-6)
    again = matrix @ row["input"].ravel() + row["residual"].ravel()
    np.testing.assert_allclose(again, row["output"].ravel(), atol=1e-5)


def test_a_grid_of_places_has_whole_images() -> None:
    torch.manual_seed(0)
    network = pixel_shuffle(2, width=8).eval()
    (all_of_them,) = rows(FiltersStage(FiltersConfig(of_size(12, 14))), network, [picture(12, 14)])
    (row,) = rows(FiltersStage(FiltersConfig(of_size(12, 14), places="grid", grid=3)), network, [picture(12, 14)])
    assert not row["bounded"]
    assert row["row_places"].tolist() == [[0, y, x] for y in (4, 12, 20) for x in (4, 14, 23)]
    assert row["column_places"].tolist() == [[0, y, x] for y in (2, 6, 10) for x in (2, 7, 11)]
    for kind, width in (("row", 28), ("column", 14)):
        assert not row[f"{kind}_corner"].any()
        for i, (_, y, x) in enumerate(row[f"{kind}_places"]):
            np.testing.assert_allclose(whole(row, kind, i), whole(all_of_them, kind, y * width + x), atol=1e-6)


def test_places_are_spread_evenly() -> None:
    assert spread(8, 2) == [2, 6]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(64, 8) == list(range(4, 64, 8))


class Averaged(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)


def test_where_the_field_is_not_bounded_a_grid_is_taken() -> None:
    frozen = freeze(Averaged().eval(), torch.zeros(1, 3, 6, 8))
    chosen, everything = filter_sizes(frozen, "auto", 2), filter_sizes(frozen, "all", 2)
    assert (chosen.bounded, chosen.rows, chosen.columns) == (False, 12, 12)
    assert (everything.bounded, everything.rows, everything.whole) == (True, 144, True)


@pytest.mark.parametrize("places", ["all", "grid"])
def test_sizes_are_known_before(places: str) -> None:
    for size, network in ((16, bicubic(3)), (6, bicubic(2))):
        image = of_size(size, size, "rgb")
        stage = FiltersStage(FiltersConfig(image, places=places, grid=2))
        (row,) = rows(stage, network.eval(), [picture(9, 9)])
        sizes = filter_sizes(freeze(network, torch.zeros(1, 3, size, size)), places, 2)
        assert sizes == stage.sizes
        assert (row["row_values"].size, row["column_values"].size) == sizes.numbers
        numbers = [row[name].size for name in row if name not in ("bounded",) and "shape" not in name]
        assert sizes.nbytes == 4 * sum(numbers)


def test_a_colour_goes_to_itself_under_bicubic() -> None:
    (row,) = rows(FiltersStage(FiltersConfig(of_size(12, 12, "rgb"))), bicubic(2).eval(), [picture(12, 12)])
    for i in (0, 24 * 24 + 300, 2 * 24 * 24 + 575):
        filter_ = whole(row, "row", i)
        own = row["row_places"][i][0]
        assert filter_[own].sum() == pytest.approx(1)
        assert np.abs(filter_).sum() == pytest.approx(np.abs(filter_[own]).sum())
    assert not row["residual"].any()


def test_the_input_is_luminance_or_as_mean_and_std_say() -> None:
    pixels = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    plain = ImageInput(Preprocess(size=(1, 1), **PLAIN))
    assert float(plain.tensor(pixels)) == pytest.approx(0.299 + 0.114 / 5)
    scaled = Preprocess(size=(1, 1), mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5), frame="squash")
    assert ImageInput(scaled, "rgb").tensor(pixels).flatten().tolist() == pytest.approx([1, -2, -0.6])
    with pytest.raises(ValueError, match="'luminance' or 'rgb'"):
        ImageInput(colour="grey")


@pytest.mark.parametrize("make", [lambda i: FiltersStage(FiltersConfig(i)), lambda i: SvdStage(SvdConfig(i, k=2))])
def test_an_image_does_not_know_its_batch(make: Any) -> None:
    network, pictures = pixel_shuffle(2, width=4).eval(), [picture(10, 10, seed) for seed in (1, 2)]
    together = rows(make(of_size(10, 10)), network, pictures)
    for i, row in enumerate(together):
        alone = rows_of_one(make(of_size(10, 10)), network, pictures[i], f"image {i}")
        for column, value in row.items():
            assert np.array_equal(alone[column], value), column


def rows_of_one(stage: Any, network: nn.Module, image: np.ndarray, key: str) -> dict[str, Any]:
    stage.setup(torch.device("cpu"), {"network": network})
    pixels = np.stack([np.zeros_like(image).transpose(2, 0, 1), stage.prepare(image, {})["pixels"]])
    batch = {"pixels": pixels, "valid": np.array([False, True]), "key": ["", key], "split": "images"}
    (found,) = stage(batch)
    return found


def test_an_image_whose_output_is_not_finite_is_an_error() -> None:
    network, stage = pixel_shuffle(2, width=4).eval(), FiltersStage(FiltersConfig(of_size(8, 8)))
    stage.setup(torch.device("cpu"), {"network": network})
    with torch.no_grad():
        network.conv4.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        stage({"pixels": np.zeros((1, 3, 8, 8), np.uint8), "valid": np.array([True])})


@pytest.mark.parametrize("method", ["block", "power"])
def test_ten_triplets_are_those_of_the_matrix(real_data: Path, method: str) -> None:
    network = real(real_data, "FSRCNN_s2_D56_S12_M4")
    stage = SvdStage(SvdConfig(of_size(9, 8), k=10, method=method, tolerance=1e-7))
    (row,) = rows(stage, network, [picture(30, 30)])
    assert row["converged"]
    assert max(row["certificate"]) <= 1e-7
    x0 = of_size(9, 8).tensor(torch.from_numpy(stage.prepare(picture(30, 30), {})["pixels"])[None])
    jacobian = torch.autograd.functional.jacobian(network.double(), x0).reshape(-1, x0.numel())
    network.float()
    u, s, vh = torch.linalg.svd(jacobian, full_matrices=False)
    np.testing.assert_allclose(row["sigma"], s[:10], rtol=1e-6)
    assert row["inputs"].shape == (10, 1, 9, 8)
    assert row["outputs"].shape == (10, 1, 18, 16)
    for found, true in ((row["inputs"], vh[:10]), (row["outputs"], u.t()[:10])):
        np.testing.assert_allclose(np.abs((found.reshape(10, -1) * true.numpy()).sum(1)), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (FiltersConfig, {"places": "some"}),
        (FiltersConfig, {"grid": 0}),
        (SvdConfig, {"method": "lanczos"}),
        (SvdConfig, {"momentum": 1.0}),
    ],
)
def test_wrong_settings_are_refused(make: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        make(**wrong)
