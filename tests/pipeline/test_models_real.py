"""Real weights on real images: networks are as right as they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline import dataset
from pipeline.dataset import key_table
from pipeline.images import Decoded
from pipeline.images import load as load_image
from pipeline.models import ModelSpec, Network, load


def accuracy(network: Network, source: dict[str, Any], count: int) -> float:
    """The share of the source's images, ``count`` of them drawn, that the network names right."""
    height, width = network.preprocess["size"]
    mean, std = (torch.tensor(network.preprocess[n]).view(3, 1, 1) for n in ("mean", "std"))
    right = 0
    rows = key_table(source | {"sample": count}).to_pylist()
    for row in rows:
        image = load_image(row["uri"])
        assert isinstance(image, Decoded)
        squashed = Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            right += int(network.module(((x - mean) / std)[None]).argmax()) == row["label"]
    return right / len(rows)


def test_real_squeezenet_is_right_as_often_as_it_should_be(real_data: Path) -> None:
    classes = str(real_data / "ilsvrc_val/synsets.txt")
    path = str(real_data / "weights/squeezenet1_0.safetensors")
    network = load(ModelSpec(name="squeezenet1_0", weights=path, classes=classes))
    # 69.4 % on all 500.
    assert accuracy(network, {"kind": "list", "path": str(real_data / "ilsvrc_val/boxes.csv")}, 60) > 0.55


def test_real_resnet20_loads_strictly_as_a_users_own_network(real_data: Path) -> None:
    path = real_data / "weights/cifar10_resnet20.safetensors"
    source = {"kind": "folder", "root": str(real_data / "cifar10/test")}
    names = names_of(source)
    network = load(
        ModelSpec(name="jobs.resnet20:cifar_resnet20", weights=str(path), preprocess={"size": 32}, classes=names)
    )
    own = {name for name in network.module.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(load_file(path))
    # 81 % on all 2,000.
    assert accuracy(network, source, 100) > 0.70


def names_of(source: dict[str, Any]) -> list[str]:
    names = dataset.class_names(key_table(source))
    assert names is not None
    return names


def test_real_mobilenet_fits(real_data: Path) -> None:
    path = str(real_data / "weights/mobilenet_v2.safetensors")
    assert load(ModelSpec(name="mobilenet_v2", weights=path)).num_classes == 1000
