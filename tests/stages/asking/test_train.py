"""Training an agent: it learns to ask, goes on after a stop as if there had been none, and leaves out what it must."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from asking_cases import pictures

from stages.asking.agent import trained_agent
from stages.asking.lesson import LessonConfig
from stages.asking.process import Process, process
from stages.asking.tasks import TASKS, ColorNatural
from stages.asking.train import AskingTraining, conversation, train_asking
from stages.asking.unet import UNetConfig
from stages.preprocess import Preprocess
from stages.training import TensorData, TrainingConfig
from stages.training_augment import AugmentConfig
from stages.training_data import RowError

FRAME = Preprocess((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def plain_colours(count: int, seed: int) -> TensorData:
    """Pictures of one colour each: L says little of it, and any answer all."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=generator, dtype=torch.uint8)
    return TensorData([f"{i}" for i in range(count)], image=colours.expand(-1, -1, 8, 8).contiguous())


def setting(**changes: Any) -> AskingTraining:
    recipe = {"epochs": 4, "batch": 8, "optimizer": "adamw", "lr": 5e-3, "warmup": 0.1, "clip": 1.0}
    own = {f.name for f in dataclasses.fields(AskingTraining)}
    training = TrainingConfig(**recipe | {k: v for k, v in changes.items() if k not in own})
    given = {"task": ColorNatural(hints=2), "unet": UNetConfig(width=8, depth=2), "augment": None, "preprocess": FRAME}
    return AskingTraining(**given | {k: v for k, v in changes.items() if k in own}, training=training)


class Memory:
    """Checkpoints of a process that may be stopped after one of them."""

    def __init__(self, stop_after: int = 0) -> None:
        self.held: dict[int, Mapping[str, bytes]] = {}
        self.stop_after = stop_after

    def save(self, epoch: int, files: Mapping[str, bytes]) -> None:
        self.held[epoch] = files
        if epoch == self.stop_after:
            raise KeyboardInterrupt

    def latest(self) -> tuple[int, Mapping[str, bytes]] | None:
        return max(self.held.items()) if self.held else None


def test_it_learns_that_an_answer_tells_the_colour() -> None:
    config = setting(epochs=30, lr=2e-2, unet=UNetConfig(16, 1), lesson=LessonConfig(noise=0.0))
    files, facts = train_asking({"train": plain_colours(64, 0), "tune": plain_colours(32, 1)}, config)
    facts = json.loads(json.dumps(facts))  # as the engine keeps them
    first, last = facts["history"][0], facts["metrics"]
    assert last["loss"] < first["loss"] / 3
    assert last["psnr_1"] > last["psnr_0"] + 3
    assert last["tune_loss"] < first["tune_loss"]
    # What is kept is what was measured.
    task, agent = trained_agent(facts, files)
    image = plain_colours(32, 1).tensors["image"]
    found = process(agent, task, image, 2)
    for n in range(3):
        assert found.psnr[:, n].mean().item() == pytest.approx(last[f"psnr_{n}"], abs=1e-4)
    losses = [found.error[:, n] + config.lesson.smooth * found.variation[:, :n].sum(1) for n in range(3)]
    assert torch.stack(losses).mean().item() == pytest.approx(last["tune_loss"], rel=1e-4)


@pytest.mark.parametrize("name", list(TASKS))
def test_stopped_it_goes_on_to_the_same_agent(name: str) -> None:
    data = {"train": TensorData([f"{i}" for i in range(24)], image=pictures(24, 10, 10))}
    data["tune"] = TensorData(["a", "b"], image=pictures(2, 8, 8, seed=1))
    config = setting(task=TASKS[name](hints=2), augment=AugmentConfig(), epochs=3, unet=UNetConfig(4, 2))
    files, facts = train_asking(data, config)
    memory = Memory(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        train_asking(data, config, memory)
    memory.stop_after = 0
    again_files, again = train_asking(data, config, memory)
    assert [e["epoch"] for e in again["history"]] == [1, 2, 3]
    for then, now in zip(facts["history"], again["history"], strict=True):
        assert now == pytest.approx(then, rel=1e-9)
    assert again_files == files


@pytest.mark.parametrize("hints", ["random", "none"])
def test_told_otherwise_it_learns_in_the_same_way(hints: str) -> None:
    data = {"train": plain_colours(64, 0), "tune": plain_colours(32, 1)}
    config = setting(hints=hints, side=3, epochs=20, lr=2e-2, unet=UNetConfig(16, 1))
    files, facts = train_asking(data, config)
    first, last = facts["history"][0], facts["metrics"]
    assert last["tune_loss"] < first["tune_loss"]
    assert [name for name in last if name.startswith("psnr")] == [f"psnr_{n}" for n in range(config.told + 1)]
    if hints == "random":
        assert last["psnr_1"] > last["psnr_0"] + 2
    assert (facts["hints"], facts["side"]) == (hints, 3)
    memory = Memory(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        train_asking(data, config, memory)
    memory.stop_after = 0
    again_files, again = train_asking(data, config, memory)
    assert again["history"] == facts["history"]
    assert again_files == files
    _, agent = trained_agent(facts, files)
    found = conversation(agent, data["tune"].tensors["image"], data["tune"].keys(np.arange(32)), config)
    assert found.psnr.mean(0).tolist() == pytest.approx([last[f"psnr_{n}"] for n in range(config.told + 1)], abs=1e-4)


def test_sample_sheets_are_of_the_first_pictures_of_tune_when_they_are_due() -> None:
    seen: list[tuple[int, Process, torch.Tensor]] = []
    tune = plain_colours(5, 2)
    config = setting(epochs=5, samples=3, sample_every=2, unet=UNetConfig(4, 2))
    _, facts = train_asking({"train": plain_colours(8, 0), "tune": tune}, config, sample=lambda *s: seen.append(s))
    assert [epoch for epoch, _, _ in seen] == [2, 4, 5]
    _, found, truth = seen[-1]
    assert torch.equal(truth, tune.tensors["image"][:3])
    assert found.pictures.shape == (3, 3, 3, 8, 8)
    assert facts["rows"] == {"train": 8, "tune": 5}


def test_without_samples_nothing_is_shown_and_all_is_learnt_the_same() -> None:
    data = {"train": plain_colours(8, 0), "tune": plain_colours(5, 2)}
    seen: list[Any] = []
    files, _ = train_asking(data, setting(epochs=2, samples=0), sample=lambda *s: seen.append(s))
    assert not seen
    assert files == train_asking(data, setting(epochs=2, samples=3), sample=lambda *s: None)[0]


class Torn(TensorData):
    """One of whose rows cannot be read."""

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        if 3 in rows:
            raise RowError("3", "is torn")
        return super().batch(rows)


def test_rows_that_cannot_be_read_are_left_out_and_listed_or_end_it() -> None:
    data = {"train": Torn([f"{i}" for i in range(17)], image=pictures(17, 8, 8))}
    said: list[str] = []
    config = setting(epochs=1, skip_unreadable=True, unet=UNetConfig(4, 2))
    _, facts = train_asking(data, config, log=said.append)
    assert facts["unreadable"] == {"train": {"3": "is torn"}}
    assert facts["rows"] == {"train": 16}
    assert said == ["1 of 17 images of train cannot be read: left out, first 3"]
    with pytest.raises(ValueError, match="give unreadable"):
        train_asking(data, config, world=2)
    with pytest.raises(RowError, match="is torn"):
        train_asking(data, dataclasses.replace(config, skip_unreadable=False))


@pytest.mark.parametrize("empty", ["train", "tune"])
def test_a_split_of_which_no_image_can_be_read_is_named(empty: str) -> None:
    data = {"train": plain_colours(8, 0), "tune": plain_colours(8, 1)}
    torn = {empty: {f"{i}": "is torn" for i in range(8)}}
    with pytest.raises(
        ValueError, match=f"{empty} has no image that can be read: all 8 are left out, first 0: is torn"
    ):
        train_asking(data, setting(monitor="loss"), unreadable=torn)
    with pytest.raises(ValueError, match=f"{empty} has no image that can be read: it is empty"):
        train_asking(data | {empty: plain_colours(0, 0)}, setting())


def test_mixed_precision_learns_much_the_same() -> None:
    data = {"train": plain_colours(32, 0), "tune": plain_colours(16, 1)}
    full, mixed = (train_asking(data, setting(precision=p))[1]["metrics"] for p in ("float32", "bf16"))
    assert mixed["loss"] == pytest.approx(full["loss"], rel=0.1)
    assert mixed["psnr_2"] == pytest.approx(full["psnr_2"], abs=1.0)


def test_what_is_watched_must_be_measured() -> None:
    with pytest.raises(ValueError, match="monitor 'psnr_9' is not measured: it is loss or one of tune_loss, psnr_0"):
        setting(monitor="psnr_9")
    with pytest.raises(ValueError, match="is measured on the tune split"):
        train_asking({"train": plain_colours(8, 0)}, setting(monitor="psnr_1"))
    assert setting(augment=AugmentConfig()).train_frame.size == (9, 9)
    assert setting().train_frame.size == (8, 8)
    with pytest.raises(ValueError, match="side 9"):
        setting(side=9)
