"""The demo's network: folding changes nothing, variation changes no class, training commits what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.demo.network import (
    PREPROCESS,
    RECIPE,
    SIZE,
    SmallVGG,
    accuracy,
    backbone,
    load_scenes,
    small_vgg,
    train_backbone,
    vary,
)
from jobs.demo.scenes import CLASS_NAMES, draw, write_scenes
from pipeline.storage import Folder
from stages.training import TensorData, row_seeds


def pictures(rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def test_folding_keeps_the_function_and_leaves_no_norm() -> None:
    torch.manual_seed(0)
    network = SmallVGG(norm=True)
    for _ in range(3):  # statistics that are not the initial ones
        network(PREPROCESS.normalise(pictures(8)))
    network.eval()
    plain = network.folded()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    x = PREPROCESS.normalise(pictures(4))
    with torch.no_grad():
        assert torch.allclose(network(x), plain(x), rtol=1e-4, atol=1e-5)
    assert plain.state_dict().keys() == small_vgg().state_dict().keys()


def test_last_map_is_fine_enough_to_localise() -> None:
    with torch.no_grad():
        assert small_vgg().features(torch.zeros(1, 3, SIZE, SIZE)).shape[-2:] == (SIZE // 8, SIZE // 8)


def test_variation_depends_on_the_row_alone_and_only_moves_and_recolours() -> None:
    image = pictures(6)
    keys = [str(n) for n in range(6)]
    batch = {"image": image, "label": torch.arange(6)}
    varied = vary(batch, row_seeds(0, 0, keys))
    assert torch.equal(varied["label"], batch["label"])
    alone = vary({"image": image[4:5], "label": torch.tensor([4])}, row_seeds(0, 0, keys[4:5]))
    assert torch.equal(alone["image"][0], varied["image"][4])
    # Away from the border every new pixel is an old one, its channels exchanged or inverted: sets of values agree.
    for old, new in zip(image, varied["image"], strict=True):
        reach = SIZE // 10
        inner = new[:, reach:-reach, reach:-reach].sort(dim=0).values.flatten(1).T.tolist()
        olds = {tuple(pixel) for pixel in old.sort(dim=0).values.flatten(1).T.tolist()}
        olds |= {tuple(pixel) for pixel in (255 - old).sort(dim=0).values.flatten(1).T.tolist()}
        assert {tuple(pixel) for pixel in inner} <= olds


def test_variation_takes_every_form() -> None:
    ramp = torch.arange(SIZE, dtype=torch.uint8).expand(1, 1, SIZE, SIZE)
    image = torch.cat([ramp, ramp + 64, ramp + 128], dim=1).expand(400, -1, -1, -1)
    varied = vary({"image": image}, row_seeds(0, 0, [str(n) for n in range(400)]))["image"].int()
    rising = varied[:, 0, 32, -10] > varied[:, 0, 32, 10]
    assert 0.4 < rising.double().mean() < 0.6
    orders = {tuple(pixel.argsort().tolist()) for pixel in varied[:, :, 32, 32]}
    assert len(orders) == 6


def test_scenes_are_loaded_as_drawn(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path, {"val": 26}, size=SIZE, seed=1)
    data = load_scenes(paths["val"])
    scenes = [draw("val", n, 1, SIZE) for n in range(26)]
    assert data.keys(np.arange(26)) == [f"{n:06d}.png" for n in range(26)]
    assert data.tensors["label"].tolist() == [scene.label for scene in scenes]
    assert np.array_equal(data.tensors["image"][5].permute(1, 2, 0).numpy(), scenes[5].image)


def test_accuracy_counts_the_highest_output() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 2.0, 1.0]]).expand(len(x), 3)

    data = TensorData(list("abcd"), image=pictures(4), label=torch.tensor([1, 1, 2, 1]))
    assert accuracy(Fixed(), data) == 0.75


def test_training_learns_and_gives_back_a_plain_network(tmp_path: Path) -> None:
    paths = write_scenes(tmp_path / "scenes", {"train": 60, "tune": 20, "val": 20}, size=SIZE)
    recipe = replace(RECIPE, epochs=3, batch=10, lr=0.01)
    lines: list[str] = []
    trained = train_backbone(Folder(str(tmp_path / "run")), paths, recipe, workers=0, threads=1, log=lines.append)
    losses = [epoch["loss"] for epoch in trained.facts["history"]]
    assert losses[-1] < losses[0]
    assert len(lines) == 3
    network = backbone(trained)
    assert trained.facts["val_accuracy"] == accuracy(network, load_scenes(paths["val"]))
    assert trained.facts["classes"] == list(CLASS_NAMES)
    with pytest.raises(Exception, match="epochs: 3 then, 4 now"):
        train_backbone(Folder(str(tmp_path / "run")), paths, replace(recipe, epochs=4), workers=0)
