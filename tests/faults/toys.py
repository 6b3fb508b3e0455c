"""Small stages for the engine's tests: cheap, deterministic, and able to misbehave on purpose.

Lies beside the tests and is put on PYTHONPATH of the drivers they start. Misbehaviour that must happen once leaves a
marker file; everything else about a row depends on its key alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import engine, leaving, options, steps, storage
from stages.schema import column


def number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")


_true_time = time.time
_KILLED_AT = ("00000.json", "00004.json", "00008.json")  # of nine: the first, one in the middle, the short last


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    seed: int = 0
    batch: int = 8
    pause_s: float = dataclasses.field(default=0.0, metadata={"fingerprint": False})
    markers: str = dataclasses.field(default="", metadata={"fingerprint": False})  # folder of markers
    fault: str = dataclasses.field(default="", metadata={"fingerprint": False})
    poison: tuple[str, ...] = ()  # keys that always kill their worker
    deadly: tuple[str, ...] = ()  # keys that kill whatever decodes them
    bad: tuple[str, ...] = ()  # keys at which the stage raises
    mended: str = dataclasses.field(default="", metadata={"fingerprint": False})  # no key is poison or bad any more
    net: bool = False  # the vectors are what a small convolution gives for noise drawn from the key


class Toy:
    """Rows are hashes of keys. ``fault`` kills the worker once (mid-shard, before or after a receipt), hangs it
    once, or turns its clock; "seen" only marks each slice at its begin and its end."""

    version = 1
    wants = "records"

    def __init__(self, config: ToyConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                column("number", pa.int64(), "first four bytes of the key's sha256"),
                column("vector", pa.list_(pa.float32()), "a function of the key", shape="[3]"),
            ]
        )

    def micro_batch(self, device: Any) -> int:
        return self.config.batch

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        if row["key"] in self.config.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        prepared = {"value": np.array([number(row["key"]) % 1000], dtype=np.float32)}
        if self.config.net:
            prepared["noise"] = np.random.default_rng(number(row["key"])).standard_normal((3, 24, 24), np.float32)
        return prepared

    def setup(self, device: Any, inputs: Any) -> None:
        self.calls, self.armed = 0, False
        if self.config.net:
            import torch

            torch.manual_seed(self.config.seed)
            layers = [
                torch.nn.Conv2d(3, 16, 3),
                torch.nn.ReLU(),
                torch.nn.Conv2d(16, 3, 5),
                torch.nn.AdaptiveAvgPool2d(1),
            ]
            self.net = torch.nn.Sequential(*layers, torch.nn.Flatten()).eval()
        if self.config.markers and not self.config.fault:  # says on which nodes workers are ready
            import ray

            (Path(self.config.markers) / f"node-{ray.get_runtime_context().get_node_id()}").touch()
        if self.config.fault in ("before receipt", "after receipt"):
            create = storage.Folder.create

            def killed(folder: storage.Folder, name: str, data: bytes) -> bool:
                receipt = folder.url.endswith("/receipts") and name in _KILLED_AT
                if receipt and self.config.fault == "before receipt":
                    self.once(f"before-{name}")
                made = create(folder, name, data)
                if receipt and self.config.fault == "after receipt":
                    self.once(f"after-{name}")
                return made

            storage.Folder.create = killed  # type: ignore[method-assign]

    def begin(self) -> None:
        """Of a shard. The micro-run, which takes as many slices as it needs on this machine, meets no fault."""
        if not self.armed:
            self.calls, self.armed = 0, True

    def once(self, what: str) -> None:
        if self.first(what):
            os.kill(os.getpid(), signal.SIGKILL)

    def first(self, what: str) -> bool:
        try:
            (Path(self.config.markers) / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        self.calls += 1
        slice_of_worker = f"{os.getpid()}-{self.calls}"
        if self.config.fault == "seen" and self.armed:
            self.first(f"began-{slice_of_worker}")
        if self.config.pause_s:
            time.sleep(self.config.pause_s)
        if self.config.fault == "clock":
            jump = (-1) ** self.calls * 1e9
            time.time = lambda: _true_time() + jump
        if self.config.fault == "mid-shard" and self.armed and self.calls == 5:  # in the midst of its second shard
            self.once(f"mid-{len(list(Path(self.config.markers).iterdir())) % 3}")
        keys = [key for key, valid in zip(batch["key"], batch["valid"], strict=True) if valid]
        if self.config.fault == "hang" and self.armed and "000150" in keys and self.first("hung"):
            time.sleep(3600)
        for key in keys if not self.config.mended else ():
            if key in self.config.poison:
                os.kill(os.getpid(), signal.SIGKILL)
            if key in self.config.bad:
                raise RuntimeError(f"cannot digest {key}")
        values = batch["value"][batch["valid"], 0]
        vectors = [np.array([value, value / 3, self.config.seed], np.float32) for value in values]
        if self.config.net:
            import torch

            with torch.inference_mode():
                vectors = list(self.net(torch.from_numpy(batch["noise"])).numpy()[batch["valid"]])
        if self.config.fault == "seen" and self.armed:
            self.first(f"ended-{slice_of_worker}")
        return [{"number": number(key), "vector": vector} for key, vector in zip(keys, vectors, strict=True)]


@dataclasses.dataclass(frozen=True)
class SumConfig:
    factor: float = 1.0
    blocks: int = 2


class Sum:
    """Sums of the numbers, each block taking those of its remainder; float32 order matters on purpose."""

    version = 1
    aligned = False
    columns = ("number", "vector")

    def __init__(self, config: SumConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([column("block", pa.int64(), "remainder"), column("total", pa.float64(), "the sum")])

    def blocks(self) -> list[int]:
        return list(range(self.config.blocks))

    def start(self, block: int) -> dict[str, Any]:
        return {"block": block, "total": np.float32(0)}

    def add(self, state: dict[str, Any], table: pa.Table) -> dict[str, Any]:
        for value in table.column("number").to_pylist():
            if value % self.config.blocks == state["block"]:
                state["total"] = np.float32(state["total"] + np.float32(value / 7))
        return state

    def merge(self, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
        return {**left, "total": np.float32(left["total"] + right["total"])}

    def finish(self, block: int, state: dict[str, Any]) -> pa.Table:
        total = float(state["total"]) * self.config.factor
        return pa.table({"block": [block], "total": [total]}, schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        return {"total": sum(table.column("total").to_pylist())}

    def state_bytes(self, block: int) -> int:
        return 64


def key_table(keys: int) -> pa.Table:
    names = [f"{i:06d}" for i in range(keys)]
    return pa.table({"key": names, "uri": names, "label": pa.array([0] * keys, pa.int32())})


def toy_job(keys: int = 200, factor: float = 1.0, **config: Any) -> steps.Job:
    source = steps.Source({"keys": keys}, lambda: key_table(keys))
    return steps.Job(
        name="toy",
        config={"keys": keys},
        sources={"all": source},
        steps=(
            steps.Measure("measure", Toy(ToyConfig(**config)), ("all",)),
            steps.Reduce("sum", Sum(SumConfig(factor=factor)), "measure", label=f"x{factor:g}"),
        ),
    )


def main() -> int:
    """A driver: ``python toys.py RUN '{"keys": 200, "fault": "mid-shard"}' '{"cpus": 2}'``."""
    import json

    from driving import NOT_REACHED, patiently

    from pipeline.errors import RaylensError

    config, resources = json.loads(sys.argv[2]), json.loads(sys.argv[3])
    for name in ("poison", "bad"):
        if name in config:
            config[name] = tuple(config[name])
    try:
        asked = options.Options(resources=options.Resources(**resources))
        outcome = patiently(lambda: engine.execute(toy_job(**config), sys.argv[1], asked), only=NOT_REACHED)
    except RaylensError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"outcome: {json.dumps({'totals': {k: dict(v) for k, v in outcome.totals.items()}})}")
    return outcome.exit_code


if __name__ == "__main__":
    leaving.leave(main())
