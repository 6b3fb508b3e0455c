"""A small training for the engine's tests, and a step that stands on it: a line fitted to hashes of keys.

Lies beside the tests and is put on PYTHONPATH of the drivers they start, as toys.py is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from toys import Sum, SumConfig, key_table, number

from pipeline import engine, leaving, options, steps
from pipeline.learnt import Learnt
from pipeline.train import Worker
from stages.schema import column
from stages.training import TensorData, TrainingConfig, fit


@dataclasses.dataclass(frozen=True)
class LineConfig:
    epochs: int = 6
    lr: float = 0.05
    hold_at: int = dataclasses.field(default=0, metadata={"fingerprint": False})  # the step that waits
    markers: str = dataclasses.field(default="", metadata={"fingerprint": False})
    fault: str = dataclasses.field(default="", metadata={"fingerprint": False})


def features(key: str) -> list[float]:
    digits = number(key)
    return [digits % 7 / 7, digits % 11 / 11, 1.0]


class Line:
    """y = 2 a - b + 0.5, learnt from the keys of split "all", 5 steps an epoch.

    ``fault`` "mid-epoch" kills its process once in the middle of the third epoch. At step ``hold_at`` it says so by the
    file "held" in ``markers`` and goes no further: whoever looks on finds it there, however busy the machine is.
    """

    version = 1

    def __init__(self, config: LineConfig) -> None:
        self.config = config

    def __call__(self, worker: Worker) -> Learnt:
        names = worker.keys["all"].table().column("key").to_pylist()
        x = torch.tensor([features(name) for name in names])
        y = x @ torch.tensor([2.0, -1.0, 0.5]) + worker.inputs.get("shift", 0.0)
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1, bias=False)
        calls = 0

        def loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == self.config.hold_at:
                self._hold()
            if self.config.fault == "mid-epoch" and calls == 13:
                self._die_once()
            return ((model(batch["x"])[:, 0] - batch["y"]) ** 2).mean()

        config = TrainingConfig(
            epochs=self.config.epochs, batch=len(names) // 5, lr=self.config.lr, optimizer="adamw", channels_last=False
        )
        history = fit(
            worker.wrap(net),
            TensorData(names, x=x, y=y),
            config,
            worker.checkpoints,
            loss=loss,
            progress=worker.tell,
            device=worker.device,
            rank=worker.rank,
            world=worker.world,
        )
        return Learnt({"weights.bin": net.weight.detach().numpy().tobytes()}, {"history": history})

    def _hold(self) -> None:
        (Path(self.config.markers) / "held").touch()
        end = time.monotonic() + 300  # should nobody end it
        while time.monotonic() < end:
            time.sleep(0.05)
        raise TimeoutError("nobody ended it")

    def _die_once(self) -> None:
        try:
            (Path(self.config.markers) / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    batch: int = 8


class Score:
    """What the line says of each key."""

    version = 1
    wants = "records"

    def __init__(self, config: ScoreConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                column("number", pa.int64(), "the score in millionths"),
                column("vector", pa.list_(pa.float32()), "the weights", shape="[3]"),
            ]
        )

    def micro_batch(self, device: Any) -> int:
        return self.config.batch

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"x": np.array(features(row["key"]), np.float32)}

    def setup(self, device: Any, inputs: Any) -> None:
        self.weights = np.frombuffer(inputs["line"].files["weights.bin"], np.float32)

    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        scores = batch["x"][batch["valid"]] @ self.weights
        return [{"number": int(score * 1e6), "vector": self.weights} for score in scores]


def job(epochs: int = 6, keys: int = 40, train_only: bool = False, **config: Any) -> steps.Job:
    train = steps.Train("line", Line(LineConfig(epochs=epochs, **config)), ("all",))
    score = steps.Measure("score", Score(ScoreConfig()), ("all",), trained={"line": "line"})
    total = steps.Reduce("sum", Sum(SumConfig()), "score")
    source = steps.Source({"keys": keys}, lambda: key_table(keys))
    return steps.Job("learning", {}, {"all": source}, (train,) if train_only else (train, score, total))


def main() -> int:
    """A driver: ``python learning.py RUN '{"epochs": 3}' '{"train_workers": 1}'``."""
    from driving import NOT_REACHED, patiently

    from pipeline.errors import RaylensError

    try:
        asked = options.Options(resources=options.Resources(**json.loads(sys.argv[3])))
        outcome = patiently(
            lambda: engine.execute(job(**json.loads(sys.argv[2])), sys.argv[1], asked), only=NOT_REACHED
        )
    except RaylensError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return outcome.exit_code


if __name__ == "__main__":
    leaving.leave(main())
