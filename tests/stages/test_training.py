"""The training loop: steps as computed by hand, and the same history however often it is interrupted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stages import training
from stages.training import (
    TensorData,
    TrainingConfig,
    best_epoch,
    epoch_order,
    fit,
    learning_rate,
    row_seeds,
    uniform,
)

PLAIN = TrainingConfig(
    epochs=2, batch=2, optimizer="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", channels_last=False
)


class Memory:
    """Checkpoints in a dict."""

    def __init__(self) -> None:
        self.saved: dict[int, dict[str, bytes]] = {}

    def save(self, epoch: int, files: Mapping[str, bytes]) -> None:
        self.saved[epoch] = dict(files)

    def latest(self) -> tuple[int, dict[str, bytes]] | None:
        return (max(self.saved), self.saved[max(self.saved)]) if self.saved else None


def squares(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return ((model(batch["x"]) - batch["y"]) ** 2).mean()


def small_network(dropout: float = 0.3) -> nn.Module:
    """With everything that has a state: batch norm's statistics, dropout's draws."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten())
    return nn.Sequential(body, nn.Linear(4 * 16, 1))


def pictures(rows: int = 22) -> TensorData:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 3, 6, 6, generator=generator)
    return TensorData([f"image-{n}" for n in range(rows)], x=x, y=x.mean(dim=(1, 2, 3))[:, None] * 10)


def shaken(batch: dict[str, torch.Tensor], seeds: np.ndarray) -> dict[str, torch.Tensor]:
    shift = torch.from_numpy(uniform(seeds, 1)).float()[:, :, None, None]
    return batch | {"x": batch["x"] + shift}


def mean_error(model: nn.Module) -> dict[str, float]:
    data = pictures().batch(np.arange(22))
    return {"error": float((model(data["x"]) - data["y"]).abs().mean())}


def test_two_epochs_of_gradient_descent_by_hand() -> None:
    # y = 2x at x = 1 and x = 2, model w x from w = 0, one batch of both rows per epoch.
    # loss = mean((w - 2)^2 x^2) = 2.5 (w - 2)^2, dloss/dw = 5 (w - 2).
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = TensorData(["a", "b"], x=torch.tensor([[1.0], [2.0]]), y=torch.tensor([[2.0], [4.0]]))
    history = fit(model, data, PLAIN, loss=squares)
    # w: 0 -> 0 + 0.1 * 10 = 1 -> 1 + 0.1 * 5 = 1.5; losses 10 and 2.5
    assert [epoch["loss"] for epoch in history] == pytest.approx([10.0, 2.5])
    assert model.weight.item() == pytest.approx(1.5)
    assert [epoch["epoch"] for epoch in history] == [1, 2]


def test_momentum_and_decay_by_hand() -> None:
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    data = TensorData(["a", "b"], x=torch.zeros(2, 1), y=torch.ones(2, 1))  # no gradient at all, only decay
    fit(model, data, replace(PLAIN, momentum=0.5, weight_decay=0.1), loss=squares)
    # Nesterov: g = 0.1 w, v = 0.5 v + g, w -= 0.1 (g + 0.5 v)
    w, v = 1.0, 0.0
    for _ in range(2):
        g = 0.1 * w
        v = 0.5 * v + g
        w -= 0.1 * (g + 0.5 * v)
    assert model.weight.item() == pytest.approx(w)
    assert model.bias.item() == 1.0, "biases are not decayed"


def test_clipping_bounds_the_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = TensorData(["a", "b"], x=torch.tensor([[1.0], [2.0]]), y=torch.tensor([[2.0], [4.0]]))
    fit(model, data, replace(PLAIN, epochs=1, clip=0.5, lr=1.0), loss=squares)
    assert model.weight.item() == pytest.approx(0.5, rel=1e-4)  # gradient -10 clipped to -0.5


@pytest.mark.parametrize("steps", [2, 7, 60])
def test_schedules_are_those_of_torch(steps: int) -> None:
    for name in ("one_cycle", "cosine"):
        config = TrainingConfig(lr=0.3, schedule=name, warmup=0.3)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        if name == "one_cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps, cycle_momentum=False)
        else:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            assert learning_rate(step, steps, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            if step + 1 < steps:
                schedule.step()


def test_order_is_a_permutation_from_seed_and_epoch() -> None:
    first = epoch_order(100, seed=3, epoch=0)
    assert sorted(first.tolist()) == list(range(100))
    assert np.array_equal(first, epoch_order(100, seed=3, epoch=0))
    assert not np.array_equal(first, epoch_order(100, seed=3, epoch=1))
    assert not np.array_equal(first, epoch_order(100, seed=4, epoch=0))


def test_what_augmentation_draws_depends_on_the_row_alone() -> None:
    keys = [f"k{n}" for n in range(2000)]
    seeds = row_seeds(0, 5, keys)
    draws = uniform(seeds, 3)
    assert np.array_equal(uniform(row_seeds(0, 5, keys[700:701]), 3)[0], draws[700])
    assert np.array_equal(uniform(seeds, 2), draws[:, :2])
    assert not np.array_equal(uniform(row_seeds(0, 6, keys), 3), draws)
    # Uniform and uncorrelated, to four standard errors.
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * draws.size)
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 4 / np.sqrt(2000)
    assert draws.min() >= 0
    assert draws.max() < 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_interrupted_training_ends_as_the_undisturbed_one_bit_for_bit(optimizer: str, stop_after: int) -> None:
    config = TrainingConfig(epochs=6, batch=5, optimizer=optimizer, lr=0.02, clip=1.0, monitor="error")
    whole = small_network()
    expected = fit(whole, pictures(), config, loss=squares, evaluate=mean_error, augment=shaken)

    class PowerError(Exception):
        pass

    def fails(progress) -> None:
        if progress.epoch == stop_after:
            raise PowerError

    checkpoints, model = Memory(), small_network()
    with pytest.raises(PowerError):
        fit(model, pictures(), config, checkpoints, loss=squares, evaluate=mean_error, augment=shaken, progress=fails)
    torch.manual_seed(99)  # whatever the new process starts with
    again = nn.Sequential(*small_network().children())
    for parameter in again.parameters():
        nn.init.constant_(parameter, 7.0)
    seen: list[int] = []
    history = fit(
        again,
        pictures(),
        config,
        checkpoints,
        loss=squares,
        evaluate=mean_error,
        augment=shaken,
        progress=lambda p: seen.append(p.epoch),
    )
    assert seen == list(range(stop_after + 1, 7)), "only what was missing is trained"
    assert history == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_what_is_done_of_an_epoch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    data = TensorData(["a", "b", "c", "d"], x=torch.ones(4, 1), y=torch.ones(4, 1))
    config = replace(PLAIN, epochs=2, batch=1)
    assert training.WITHIN_S == 2.0
    monkeypatch.setattr(training, "WITHIN_S", math.inf)
    fit(nn.Linear(1, 1), data, config, loss=squares, within=told.append)
    assert told == [], "not before its time"
    monkeypatch.setattr(training, "WITHIN_S", 0.0)
    fit(nn.Linear(1, 1), data, config, loss=squares, within=told.append)
    assert told == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


def test_finished_training_is_only_read_back() -> None:
    config, checkpoints, model = replace(PLAIN, epochs=3), Memory(), nn.Linear(1, 1)
    data = TensorData(["a", "b"], x=torch.ones(2, 1), y=torch.ones(2, 1))
    history = fit(model, data, config, checkpoints, loss=squares)
    blank = nn.Linear(1, 1)
    assert fit(blank, data, config, checkpoints, loss=lambda m, b: pytest.fail("trained again")) == history
    assert torch.equal(blank.weight, model.weight)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    fit(small_network_without_touching_the_seed(), pictures(), TrainingConfig(epochs=1, batch=5), loss=squares)
    assert torch.equal(torch.rand(3), expected)


def small_network_without_touching_the_seed() -> nn.Module:
    with torch.random.fork_rng():
        return small_network()


def test_early_stopping_keeps_the_best_epoch() -> None:
    config = TrainingConfig(epochs=20, batch=5, lr=0.01, monitor="score", mode="max", patience=2)
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3])
    weights: list[torch.Tensor] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        weights.append(model[1].weight.clone())
        return {"score": next(scores)}

    model = small_network()
    history = fit(model, pictures(), config, loss=squares, evaluate=evaluate)
    assert [epoch["score"] for epoch in history] == [0.1, 0.5, 0.4, 0.5]
    assert best_epoch(history, config) == 1
    assert torch.equal(model[1].weight, weights[1])
    assert not torch.equal(weights[1], weights[3])


def test_early_stopping_is_remembered_by_the_checkpoint() -> None:
    config = TrainingConfig(epochs=20, batch=5, monitor="score", mode="max", patience=1)
    checkpoints, scores = Memory(), iter([0.5, 0.4])
    history = fit(
        small_network(), pictures(), config, checkpoints, loss=squares, evaluate=lambda m: {"score": next(scores)}
    )
    again = fit(
        small_network(), pictures(), config, checkpoints, loss=squares, evaluate=lambda m: pytest.fail("went on")
    )
    assert again == history
    assert len(history) == 2


def test_low_precision_and_memory_layout_change_little() -> None:
    config = TrainingConfig(epochs=2, batch=5, lr=0.01, channels_last=False)
    base = fit(small_network(0), pictures(), config, loss=squares)
    layout = fit(small_network(0), pictures(), replace(config, channels_last=True), loss=squares)
    rounded = fit(small_network(0), pictures(), replace(config, precision="bf16"), loss=squares)
    assert [e["loss"] for e in layout] == pytest.approx([e["loss"] for e in base], rel=1e-4)
    assert [e["loss"] for e in rounded] == pytest.approx([e["loss"] for e in base], rel=0.05)
    assert rounded != base


def test_a_checkpoint_of_another_config_or_model_is_refused_by_name() -> None:
    data, checkpoints = pictures(), Memory()
    config = TrainingConfig(epochs=1, batch=5, lr=0.01)
    fit(small_network(), data, config, checkpoints, loss=squares)
    with pytest.raises(ValueError, match=r"lr: 0\.01 then, 0\.02 now"):
        fit(small_network(), data, replace(config, lr=0.02), checkpoints, loss=squares)
    other = nn.Sequential(nn.Flatten(), nn.Linear(108, 1))
    with pytest.raises(ValueError, match="another model"):
        fit(other, data, config, checkpoints, loss=squares)


def test_a_checkpoint_on_other_rows_is_refused_with_both_counts() -> None:
    checkpoints, config = Memory(), TrainingConfig(epochs=1, batch=8, lr=0.01)
    fit(small_network(), pictures(64), config, checkpoints, loss=squares)
    with pytest.raises(ValueError, match=r"other rows \(64 then, 40 now"):
        fit(small_network(), pictures(40), config, checkpoints, loss=squares)
    renamed = TensorData([f"other-{n}" for n in range(64)], **pictures(64).tensors)
    with pytest.raises(ValueError, match=r"other rows \(64 then, 64 now"):
        fit(small_network(), renamed, config, checkpoints, loss=squares)


def test_how_often_a_checkpoint_is_written_may_change_on_the_way() -> None:
    class PowerError(Exception):
        pass

    def fails(progress) -> None:
        if progress.epoch == 2:
            raise PowerError

    config = TrainingConfig(epochs=4, batch=5, lr=0.01)
    expected = fit(small_network(), pictures(), config, loss=squares)
    checkpoints = Memory()
    with pytest.raises(PowerError):
        fit(small_network(), pictures(), config, checkpoints, loss=squares, progress=fails)
    seldom = replace(config, checkpoint_every=3)
    assert fit(small_network(), pictures(), seldom, checkpoints, loss=squares) == expected
    assert sorted(checkpoints.saved) == [1, 2, 3, 4]


def test_mistakes_are_told() -> None:
    data = pictures()
    with pytest.raises(ValueError, match="do not fill one batch"):
        fit(small_network(), data, TrainingConfig(batch=23), loss=squares)
    with pytest.raises(ValueError, match="patience needs a monitor"):
        fit(small_network(), data, TrainingConfig(batch=5, patience=1), loss=squares)
    with pytest.raises(ValueError, match="does not divide among 2"):
        fit(small_network(), data, TrainingConfig(batch=5), loss=squares, world=2)
    with pytest.raises(ValueError, match="rows"):
        TensorData(["a"], x=torch.zeros(2, 1))
    with pytest.raises(FloatingPointError, match="lower lr"):
        fit(small_network(), data, TrainingConfig(batch=5), loss=lambda m, b: squares(m, b) * torch.inf)
