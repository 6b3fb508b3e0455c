"""Networks by name and weights by enum, path or URL; what does not fit is said before a run begins."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import ModelSpec, Network, class_names, load, preprocess_for, weights_digest
from pipeline.vision import torchvision

NETWORK = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.bn = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.drop(self.bn(self.conv(x)).relu().mean((2, 3))))

def tiny(classes=4):
    return Tiny(classes)

def segments():
    return nn.Conv2d(3, 4, 1)

def no_network():
    return 3

def broken():
    raise RuntimeError("boom")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's module in it."""
    (tmp_path / "raylens_own_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    yield tmp_path
    sys.modules.pop("raylens_own_networks", None)


def spec(**fields: Any) -> ModelSpec:
    small = {"name": "raylens_own_networks:tiny", "preprocess": {"size": 16}}
    return ModelSpec(**(small | fields))


def refused(given: ModelSpec, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(given)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert caught.value.cure
    assert caught.value.where


def same_numbers(module: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    mine = module.state_dict()
    return all(torch.equal(mine[name], tensor.to(mine[name].dtype)) for name, tensor in state.items())


def state_of(given: ModelSpec) -> dict[str, torch.Tensor]:
    return load(given).module.state_dict()


def test_a_network_is_in_eval_mode_float32_and_frozen(own: Path) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in state_of(spec(seed=1)).items()}
    save_file(state, own / "w.safetensors")
    network = load(spec(weights="w.safetensors", classes=["a", "b", "c", "d"]))
    assert isinstance(network, Network)
    assert not any(module.training for module in network.module.modules())
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.module.parameters())
    assert (network.classes, network.num_classes) == (["a", "b", "c", "d"], 4)
    assert same_numbers(network.module, state)


def test_random_weights_need_a_seed_and_repeat(own: Path) -> None:
    with pytest.raises(ValidationError, match="seed"):
        spec()
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = state_of(spec(seed=7))
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state moved"
    assert same_numbers(load(spec(seed=7)).module, first)
    assert not same_numbers(load(spec(seed=8)).module, first)


def _safetensors(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file(state, path)


def _torch(wrap: str) -> Any:
    def save(state: dict[str, torch.Tensor], path: Path) -> None:
        prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
        compiled = {f"_orig_mod.{name}": tensor for name, tensor in prefixed.items()}
        old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        contents: dict[str, Any] = {
            "plain": state,
            "nested": {"epoch": 3, "state_dict": prefixed, "best": 0.5},
            "compiled": {"model": compiled},
            "old": old,
        }
        torch.save(contents[wrap], path)

    return save


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("w.safetensors", _safetensors),
        ("w.pth", _torch("plain")),
        ("w.pt", _torch("nested")),
        ("w.ckpt", _torch("compiled")),
        ("w.bin", _torch("old")),
    ],
)
def test_every_form_of_weights_file_gives_the_same_network(own: Path, name: str, save: Any) -> None:
    state = state_of(spec(seed=3))
    save(state, own / name)
    assert same_numbers(load(spec(weights=str(own / name))).module, state)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


def test_nothing_in_a_weights_file_is_executed(own: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1), "x": Runs()}, own / "evil.pth")
    refused(spec(weights="evil.pth"), "evil.pth", "state_dict()")
    torch.save(load(spec(seed=1)).module, own / "whole.pth")
    refused(spec(weights="whole.pth"), "whole.pth", "state_dict()")
    assert not (own / "executed").exists()


def test_damaged_and_wrong_files_are_named(own: Path) -> None:
    save_file(state_of(spec(seed=1)), own / "good.safetensors")
    whole = (own / "good.safetensors").read_bytes()
    torch.save({"epoch": 3}, own / "empty.pth")
    torch.save([1, 2], own / "list.pth")
    for name, content in (("cut.safetensors", whole[:-9]), ("cut.pth", whole[:200]), ("zero.pth", b"")):
        (own / name).write_bytes(content)
        refused(spec(weights=name), name, "cannot be read")
    refused(spec(weights="empty.pth"), "no named tensors", "epoch")
    refused(spec(weights="list.pth"), "no named tensors")
    refused(spec(weights="none.pth"), "none.pth", "no such")
    bad = {name: t.clone() for name, t in state_of(spec(seed=1)).items()}
    bad["head.bias"][2] = float("nan")
    save_file(bad, own / "nan.safetensors")
    refused(spec(weights="nan.safetensors"), "head.bias", "NaN")


def test_weights_that_do_not_fit_say_what_differs_and_the_likely_cure(own: Path) -> None:
    state = state_of(spec(seed=1))
    save_file(state, own / "w.safetensors")
    refused(spec(weights="w.safetensors", arguments={"classes": 9}), "head.weight [4, 5] for [9, 5]", "4 classes")
    other = {name.replace("head.", "fc."): tensor for name, tensor in state.items()}
    save_file(other, own / "other.safetensors")
    refused(spec(weights="other.safetensors"), "2 missing: head.weight, head.bias", "2 unexpected: fc.", "rename")


def test_weights_of_a_sister_architecture_are_recognised(tmp_path: Path) -> None:
    state = torchvision.models.resnet34().state_dict()
    torch.save(state, tmp_path / "w.pth")
    refused(ModelSpec(name="resnet18", weights=str(tmp_path / "w.pth")), "weights of resnet34")


def test_names_that_are_wrong_have_near_matches(own: Path) -> None:
    refused(ModelSpec(name="resnet81", seed=0), "resnet81", "resnet18")
    refused(ModelSpec(name="fasterrcnn_resnet50_fpn", seed=0), "fasterrcnn")
    refused(ModelSpec(name="vgg16", weights="IMAGENET1K_V9"), "IMAGENET1K_V9", "did you mean IMAGENET1K_V1")
    refused(spec(name="raylens_own_networks:tinny", seed=0), "tinny", "did you mean tiny")
    refused(spec(name="raylens_no_such:tiny", seed=0), "raylens_no_such", str(own))
    refused(spec(name="a b:tiny", seed=0), "module:function")
    refused(spec(name="raylens_own_networks:no_network", seed=0), "returns int", "nn.Module")
    refused(spec(name="raylens_own_networks:broken", seed=0), "boom")
    refused(spec(seed=0, arguments={"clases": 3}), "clases")
    refused(ModelSpec(name="resnet18", seed=0, arguments={"weights": "DEFAULT"}), "weights")
    refused(spec(weights="DEFAULT"), "DEFAULT", "file")
    (own / "raylens_own_imports.py").write_text("import raylens_missing_dependency\n")
    refused(spec(name="raylens_own_imports:f", seed=0), "raylens_missing_dependency")
    with pytest.raises(ValidationError, match="weight"):
        ModelSpec(name="vgg16", weight="DEFAULT")  # type: ignore[call-arg]


def test_a_network_that_is_no_classifier_of_these_classes_is_refused(own: Path) -> None:
    refused(spec(seed=0, classes=["a", "b"]), "4 classes", "2")
    refused(spec(seed=0, num_classes=5), "4 classes", "5")
    refused(spec(name="raylens_own_networks:segments", seed=0), "logits")
    refused(spec(seed=0, preprocess={"size": [8, 3000]}, name="inception_v3"), "8 x 3000")
    assert load(spec(seed=0, name="raylens_own_networks:segments"), probe=False).num_classes is None


def test_the_number_of_classes_reaches_torchvisions_builder() -> None:
    base = {"name": "squeezenet1_1", "seed": 0, "preprocess": {"size": 64}}
    assert load(ModelSpec(**base, num_classes=7)).num_classes == 7
    assert load(ModelSpec(**base, classes=["a", "b", "c"])).num_classes == 3
    assert load(ModelSpec(**base)).num_classes == 1000


def test_preprocessing_follows_the_weights_then_the_name_then_imagenet_and_the_config_wins() -> None:
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "frame": "squash"}
    v1 = ModelSpec(name="resnet50", weights="IMAGENET1K_V1")
    assert preprocess_for(v1) == imagenet | {"size": (224, 224), "resize": 256}
    assert preprocess_for(ModelSpec(name="resnet50", weights="DEFAULT"))["resize"] == 232
    assert preprocess_for(ModelSpec(name="inception_v3", seed=0))["size"] == (299, 299)
    half = preprocess_for(ModelSpec(name="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1"))
    assert half["size"] == (384, 384)
    assert preprocess_for(ModelSpec(name="a:b", seed=0)) == imagenet | {"size": (224, 224), "resize": None}
    mine = {"size": [20, 30], "mean": [0, 0, 0], "std": [1, 1, 1], "frame": "crop", "resize": 40}
    assert preprocess_for(ModelSpec(name="resnet50", weights="DEFAULT", preprocess=mine)) == {
        "size": (20, 30),
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "frame": "crop",
        "resize": 40,
    }
    for wrong in ({"std": [0, 1, 1]}, {"size": 0}, {"frame": "stretch"}, {"sise": 3}, {"mean": [0, 0]}):
        with pytest.raises(ValidationError):
            ModelSpec(name="resnet50", seed=0, preprocess=wrong)


def test_the_preprocessing_is_what_the_stages_take() -> None:
    from stages.preprocess import Preprocess

    made = Preprocess(**preprocess_for(ModelSpec(name="inception_v3", seed=0, preprocess={"frame": "crop"})))
    assert made.pixels(np.zeros((50, 60, 3), np.uint8)).shape == (3, 299, 299)


def test_class_names_come_from_torchvision_unless_given(tmp_path: Path) -> None:
    names = class_names(ModelSpec(name="vgg16", weights="DEFAULT"))
    assert names is not None
    assert (len(names), names[0]) == (1000, "tench")
    (tmp_path / "c.txt").write_text("a\nb\n")
    assert class_names(ModelSpec(name="vgg16", weights="DEFAULT", classes=str(tmp_path / "c.txt"))) == ["a", "b"]
    assert class_names(ModelSpec(name="vgg16", weights="x.pth")) is None


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_side_heads_are_loaded_from_either_layout_and_dropped(tmp_path: Path, name: str, auxiliary: bool) -> None:
    maker = torchvision.models.get_model_builder(name)
    module = maker(weights=None, init_weights=False, aux_logits=auxiliary, num_classes=6).eval()
    torch.save(module.state_dict(), tmp_path / "w.pth")
    network = load(ModelSpec(name=name, weights=str(tmp_path / "w.pth"), num_classes=6))
    assert not any("aux" in key.lower() for key in network.module.state_dict())
    x = torch.randn(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), module(x))


def test_densenets_old_names_are_understood(tmp_path: Path) -> None:
    state = torchvision.models.densenet121(num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))(\d)", r"\1.\2", name): t for name, t in state.items()}
    assert any(".norm.1." in name for name in old)
    torch.save(old, tmp_path / "w.pth")
    given = ModelSpec(name="densenet121", weights=str(tmp_path / "w.pth"), num_classes=3, preprocess={"size": 64})
    assert same_numbers(load(given).module, state)


def test_digests_tell_weights_apart(own: Path) -> None:
    for seed in (1, 2):
        save_file(state_of(spec(seed=seed)), own / f"{seed}.safetensors")
    one = weights_digest(spec(weights="1.safetensors"))
    assert one == hashlib.sha256((own / "1.safetensors").read_bytes()).hexdigest()
    assert one != weights_digest(spec(weights="2.safetensors"))
    assert weights_digest(spec(seed=1)) == weights_digest(spec(seed=1))
    assert weights_digest(spec(seed=1)) != weights_digest(spec(seed=2))
    assert weights_digest(spec(seed=1)) != weights_digest(spec(seed=1, arguments={"classes": 5}))
    vgg = [weights_digest(ModelSpec(name="vgg16", weights=w)) for w in ("DEFAULT", "IMAGENET1K_V1")]
    assert vgg[0] == vgg[1] != weights_digest(ModelSpec(name="vgg19", weights="DEFAULT"))


def test_weights_that_were_replaced_have_another_digest_in_the_same_process(own: Path) -> None:
    """A worker outlives a step, and a notebook many runs."""
    save_file(state_of(spec(seed=1)), own / "w.safetensors")
    given = NetworkInput(spec(weights="w.safetensors"))
    first = given.digest()
    save_file(state_of(spec(seed=2)), own / "w.safetensors")
    os.utime(own / "w.safetensors", ns=(0, 0))
    second = given.digest()
    assert second != first
    save_file(state_of(spec(seed=1)), own / "w.safetensors")
    assert given.digest() == first
