"""Training both levels: it learns, it goes on after a kill, and a frozen backbone stays as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import two_level_cases
from two_level_cases import COARSE, FINE, SIZE, Saved, album, backbone, setting, train_here

from stages.semantic.computed import require_room
from stages.semantic.network import TwoLevelConfig, new_network, two_level_network
from stages.semantic.train import train_two_level
from stages.training import RowError, TensorData, row_seeds
from stages.training_augment import vary
from stages.training_device import tuned

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("batches", [7, 22, 36])  # the first of the second epoch, one on the way, the last of all
def test_killed_in_any_epoch_it_ends_as_the_undisturbed_training(tmp_path: Path, batches: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: sums are rounded by how they are shared out
    try:
        undisturbed = train_here(tmp_path / "undisturbed")
    finally:
        torch.set_num_threads(before)
    done = (batches - 1) // 6
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, two_level_cases.__file__, str(tmp_path / "killed")]
    killed = subprocess.run([*command, str(batches)], capture_output=True, text=True, env=environment, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    found = Saved(tmp_path / "killed").latest()
    assert found is not None
    assert found[0] == done, f"killed at batch {batches}"

    again = subprocess.run([*command, "0"], capture_output=True, text=True, env=environment, timeout=200)
    assert again.returncode == 0, again.stderr
    told = again.stdout.splitlines()
    epochs = [line for line in told if line.startswith("epoch ")]
    assert epochs == [f"epoch {n}/6" for n in range(done + 1, 7)], "only the rest"
    facts = json.loads(next(line for line in told if line.startswith("{")))
    assert len(facts["history"]) == len(undisturbed["history"])
    for then, now in zip(undisturbed["history"], facts["history"], strict=True):
        assert now == pytest.approx(then, abs=1e-6), f"killed at batch {batches}"
    assert facts["metrics"] == pytest.approx(undisturbed["metrics"], abs=1e-6)
    assert facts["best_epoch"] == undisturbed["best_epoch"]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        {"loss": "bce"},
        {"loss": "focal", "coarse_input": "features"},
        {"coarse_only": True, "monitor": "coarse_accuracy"},
        {"loss": "focal", "freeze": True, "views": 2, "epochs": 25, "lr": 0.1},
    ],
    ids=["focal", "bce", "features", "coarse-only", "frozen"],
)
def test_it_learns_and_is_rebuilt_from_its_files(changes: dict) -> None:
    config = setting(**{"epochs": 12} | changes)
    data = {"train": album(160, size=config.train_frame.size[0], people_only=3), "tune": album(60, seed=1)}
    files, facts = train_two_level(backbone(), data, config)
    facts = json.loads(json.dumps(facts))  # as the engine keeps them
    assert facts["metrics"]["coarse_accuracy"] >= 0.9
    assert facts["metrics"] == facts["history"][facts["best_epoch"] - 1]
    assert facts["rows"] == {"train": 160, "tune": 60}
    if config.model.coarse_only:
        assert "ia" not in facts["metrics"]
    else:
        assert facts["metrics"]["ia"] >= 0.8
        assert facts["metrics"]["ia"] <= min(facts["metrics"]["fine_exact"], facts["metrics"]["coarse_accuracy"])

    network = two_level_network(backbone(), facts, files, config.preprocess.size)
    batch = data["tune"].batch(np.arange(60))
    with torch.no_grad():
        outputs = network(config.preprocess.normalise(batch["image"]))
    right = (outputs.coarse.argmax(1) == batch["coarse"]).double().mean().item()
    assert right == pytest.approx(facts["metrics"]["coarse_accuracy"])
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_the_backbone_given_is_never_touched_and_a_frozen_one_is_not_stored() -> None:
    given = backbone()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    data = {"train": album(32, size=18)}
    whole, _ = train_two_level(given, data, setting(epochs=1, monitor=None))
    frozen, _ = train_two_level(given, {"train": album(32)}, setting(epochs=1, monitor=None, freeze=True))
    for name, value in given.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not given.training
    names = safetensors.torch.load(frozen["network.safetensors"]).keys()
    assert sorted(names) == ["heads.coarse.bias", "heads.coarse.weight", "heads.fine.bias", "heads.fine.weight"]
    assert "features.features.0.weight" in safetensors.torch.load(whole["network.safetensors"])


def test_a_frozen_backbone_computes_each_image_once_and_each_view_is_fixed() -> None:
    class Counted(TensorData):
        asked, in_memory = 0, False

        def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
            Counted.asked += len(rows)
            return super().batch(rows)

    source = album(32, size=18)
    data = Counted([f"image-0-{n}" for n in range(32)], **source.tensors)
    config = setting(freeze=True, views=3, epochs=4, monitor=None, evaluate_batch=5)
    seen: list[str] = []
    files, facts = train_two_level(backbone(), {"train": data}, config, log=seen.append)
    assert Counted.asked == 32, "four epochs, three views, one decoding"
    assert facts["rows"] == {"train": 32}
    assert any(line.startswith("features of 32 images of train x 3") for line in seen)
    other, _ = train_two_level(backbone(), {"train": data}, setting(**_frozen(evaluate_batch=32)))
    for name, value in safetensors.torch.load(files["network.safetensors"]).items():
        again = safetensors.torch.load(other["network.safetensors"])[name]
        torch.testing.assert_close(again, value, rtol=1e-4, atol=1e-5)


def _frozen(**changes: int) -> dict:
    return {"freeze": True, "views": 3, "epochs": 4, "monitor": None, **changes}


def test_a_frozen_training_equals_training_heads_on_the_backbones_output_by_hand() -> None:
    # One full batch, plain gradient descent, one epoch: the heads move against the gradient of the mean loss.
    data = album(16)
    recipe = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "clip": None}
    config = setting(freeze=True, augment=None, epochs=1, lr=0.5, monitor=None, **recipe)
    files, _ = train_two_level(backbone(), {"train": data}, config)
    network = new_network(backbone(), config.model, (SIZE, SIZE), config.training.seed)
    network.eval()
    batch = data.batch(np.arange(16))
    outputs = network(config.preprocess.normalise(batch["image"]))
    fine, hot = outputs.fine, batch["fine"].double()
    assert fine is not None
    p = fine.double().softmax(1)
    loss = (hot * (1 - p) ** 2 * -p.log()).sum(1) / hot.sum(1)
    loss = loss - outputs.coarse.double().log_softmax(1)[torch.arange(16), batch["coarse"]]
    loss.mean().backward()
    learnt = safetensors.torch.load(files["network.safetensors"])
    for name, parameter in network.heads.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - 0.5 * parameter.grad
        torch.testing.assert_close(learnt[f"heads.{name}"], expected, rtol=1e-4, atol=1e-6)


def test_rows_that_cannot_be_read_are_told_or_left_out_as_asked() -> None:
    class Damaged(TensorData):
        def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
            for key in self.keys(rows):
                if key.endswith("-5"):
                    raise RowError(key, "truncated")
            return super().batch(rows)

    source = album(40, size=18)
    data = {"train": Damaged([f"image-{n}" for n in range(40)], **source.tensors), "tune": album(10, seed=1)}
    with pytest.raises(ValueError, match="row 'image-5' cannot be read: truncated"):
        train_two_level(backbone(), data, setting(epochs=3))
    _, facts = train_two_level(backbone(), data, setting(epochs=1, skip_unreadable=True))
    assert facts["unreadable"] == {"train": {"image-5": "truncated"}, "tune": {}}
    assert facts["rows"] == {"train": 39, "tune": 10}

    class Unread(TensorData):
        asked: list[str] = []  # noqa: RUF012 -- of this test alone

        def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
            self.asked += self.keys(rows)
            return super().batch(rows)

    data["train"] = Unread([f"image-{n}" for n in range(40)], **source.tensors)
    known = {"train": {"image-7": "said before"}}
    config = setting(epochs=1, skip_unreadable=True, batch=39)
    _, facts = train_two_level(backbone(), data, config, unreadable=known)
    assert facts["unreadable"] == {"train": {"image-7": "said before"}, "tune": {}}
    assert sorted(Unread.asked) == sorted({f"image-{n}" for n in range(40)} - {"image-7"}), "each once: no screening"
    with pytest.raises(ValueError, match="give unreadable"):
        train_two_level(backbone(), data, config, world=2)


def test_features_that_do_not_fit_are_refused_with_their_size() -> None:
    data = {"train": album(100), "tune": album(10, seed=1)}
    seen: list[str] = []
    require_room(data, 3, 512, seen.append, held=310 * 512 * 4)
    assert seen == ["310 rows of 512 features, 0.0 GB in memory"], "views are of the training images alone"
    with pytest.raises(ValueError, match=r"310 rows of 512 features.*lower views, or train without freeze"):
        require_room(data, 3, 512, seen.append, held=310 * 512 * 4 - 1)


def test_cudnn_is_left_as_it_was_found() -> None:
    before = torch.backends.cudnn.benchmark
    for device, inside in (("cuda", True), ("cpu", before)):
        with tuned(torch.device(device)):
            assert torch.backends.cudnn.benchmark == inside
        assert torch.backends.cudnn.benchmark == before


def test_what_is_trained_on_is_augmented_and_what_is_judged_is_not() -> None:
    config = setting()
    assert config.train_frame.size == (18, 18)
    assert setting(augment=None).train_frame == config.preprocess
    assert setting(freeze=True).train_frame == config.preprocess
    assert setting(freeze=True, views=2).train_frame.size == (18, 18)
    source = album(16, size=18)
    seen: list[torch.Tensor] = []

    class Watched(two_level_cases.Toy):
        pass

    watched = Watched()
    watched.load_state_dict(backbone().state_dict())
    original = torch.nn.functional.conv2d
    with pytest.MonkeyPatch.context() as patch:

        def conv2d(x: torch.Tensor, weight: torch.Tensor, *args, **kwargs):
            if weight.shape[1] == 3 and torch.is_grad_enabled():
                seen.append(x.detach().clone())
            return original(x, weight, *args, **kwargs)

        patch.setattr(torch.nn.functional, "conv2d", conv2d)
        train_two_level(watched.eval(), {"train": source}, setting(epochs=1, monitor=None))
    (trained_on,) = seen
    keys = [f"image-0-{n}" for n in range(16)]
    assert config.augment is not None
    expected = vary(source.tensors["image"], row_seeds(0, 0, keys), config.augment, (SIZE, SIZE))
    rows = {tuple(x.flatten().tolist()) for x in config.preprocess.normalise(expected)}
    assert {tuple(x.flatten().tolist()) for x in trained_on} == rows


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="measured on the tune split"):
        train_two_level(backbone(), {"train": album(32, size=18)}, setting())
    with pytest.raises(ValueError, match="it is loss or one of"):
        setting(monitor="accuracy")
    with pytest.raises(ValueError, match="needs a frozen backbone"):
        setting(views=2)
    data = {"train": album(32, size=18), "tune": album(4, people_only=4)}
    seen: list[str] = []
    with pytest.raises(ValueError, match="no image of the tune split has a coarse label"):
        train_two_level(backbone(), data, setting(epochs=1), log=seen.append, progress=lambda _: seen.append("epoch"))
    with pytest.raises(ValueError, match="train has no image that can be read: it is empty"):
        train_two_level(backbone(), data | {"train": album(0, size=18)}, setting(), log=seen.append)
    assert seen == [], "before anything is computed"
    with pytest.raises(ValueError, match="at least 1 and 2"):
        TwoLevelConfig(3, 1)
    files, facts = train_two_level(backbone(), {"train": album(32, size=18)}, setting(epochs=1, monitor=None))
    assert facts["model"]["fine"] == len(FINE)
    assert facts["model"]["coarse"] == len(COARSE)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 5)).eval()
    with pytest.raises(ValueError, match="another network"):
        two_level_network(other, facts, files, (SIZE, SIZE))
