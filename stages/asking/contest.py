"""One image, told in many ways: by answers to its own questions, at points, and coloured by sparse solves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.asking.agent import UNetAgent, trained_agent
from stages.asking.bilateral import BilateralSolver
from stages.asking.colour import to_unit
from stages.asking.levin import Levin
from stages.asking.paradigm import QuestionFunction, Task
from stages.asking.points import AtLargestError, Fill, OnOneMap, at_random, network
from stages.asking.process import Process, process, turns_cost
from stages.asking.train import PIXELS
from stages.preprocess import Preprocess
from stages.schema import column
from stages.training_draws import row_seeds

ASKED, ASKED_EXACT, NONE = "asked", "asked_exact", "none"
POINTS = {"points": "a network", "levin": "Levin et al.", "bilateral": "Barron and Poole"}
SOLVES = ("levin", "bilateral")
RANDOM, WORST = "random", "max_error"
MEANING = {
    ASKED: "asks, trained with the noise on answers that the config sets",
    ASKED_EXACT: "asks, trained without noise on answers",
    NONE: "a network that is told nothing",
}


class Solver(Protocol):
    """A classical colorization of one picture."""

    def __call__(self, light: NDArray[np.floating], known: NDArray[np.bool_], hints: NDArray[np.floating]) -> NDArray:
        """Lightness [H, W] in 0..1, where there are hints [H, W], hints [K, H, W] -> colours [K, H, W]."""
        ...


@dataclass(frozen=True)
class ContestConfig:
    """``exact``: a second network that asks, trained without noise, takes part. ``classical``: the solves do.

    ``seed``: of the random points. Hints given are as many as the network that asks was trained to take.
    """

    preprocess: Preprocess = PIXELS
    hints: int = 4
    exact: bool = True
    classical: bool = True
    bilateral: BilateralSolver = field(default_factory=BilateralSolver)
    seed: int = 0
    batch: int = field(default=0, metadata={"fingerprint": False})  # images in a call; 0 chooses by device

    @property
    def methods(self) -> tuple[str, ...]:
        asking = (ASKED, ASKED_EXACT) if self.exact else (ASKED,)
        told = list(POINTS) if self.classical else ["points"]
        return (*asking, *(f"{name}_{where}" for name in told for where in (RANDOM, WORST)), NONE)

    def answers(self, method: str) -> int:
        """How many hints a method is given."""
        return 0 if method == NONE else self.hints


class Contest:
    """Inputs: "asked", "points", "none" and, with ``exact``, "exact": results of train_asking as files and facts."""

    version = 1
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: ContestConfig) -> None:
        self.config = config
        self._agents: dict[str, UNetAgent] = {}

    @property
    def schema(self) -> pa.Schema:
        floats = pa.list_(pa.float32())
        columns = [
            column(f"psnr/{name}", floats, _meaning(name), shape="[T + 1]" if name != NONE else "[1]", unit="dB")
            for name in self.config.methods
        ]
        within = "error of the network that is told nothing, per pixel |y - truth| averaged over channels"
        return pa.schema(
            [
                *columns,
                column("question_error", floats, f"{within}: under each question; NaN: it asks nowhere", shape="[T]"),
                column("mean_error", pa.float32(), f"{within}: over the picture"),
            ]
        )

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w]."""
        return {"pixels": self.config.preprocess.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        self.device = device
        for name, trained in inputs.items():
            self.task, agent = trained_agent(trained.facts, trained.files)
            self._agents[name] = agent.to(device)
        self.side = int(inputs["points"].facts["side"])

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (8 if device.type == "cpu" else 64)

    def cost(self) -> dict[str, float]:
        """Per row: a forward pass for each turn of a network, and one for the error of that which is told nothing.

        Sparse solves are no forward passes: the time of a micro-run has them, these counts have not.
        """
        if not self._agents:
            raise RuntimeError("the stage has no networks yet: call setup() first")
        config = self.config
        turns = 1 + sum(config.answers(name) + 1 for name in config.methods if not name.startswith(SOLVES))
        return turns_cost(self._agents["asked"], self.task, config.preprocess.size, self.device, turns)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self._agents:
            raise RuntimeError("the stage has no networks yet: call setup() first")
        pixels = torch.as_tensor(np.asarray(batch["pixels"])).to(self.device)
        truth = self.task.truth(to_unit(pixels))
        found = dict(self._processes(pixels, truth, list(batch["key"])))
        if not all(bool(torch.isfinite(each.error).all()) for each in found.values()):
            raise ValueError("what a network makes of an image is not finite")
        error = self._error(pixels, truth)
        asked = found[ASKED].questions.double()
        under = (asked * error[:, None]).sum((2, 3)) / asked.sum((2, 3))
        rows = []
        for at in (at for at, given in enumerate(batch["valid"]) if given):
            row: dict[str, Any] = {f"psnr/{name}": each.psnr[at].float().cpu().numpy() for name, each in found.items()}
            row["question_error"] = under[at].float().cpu().numpy()
            row["mean_error"] = float(error[at].mean())
            rows.append(row)
        return rows

    def _processes(self, pixels: Tensor, truth: Tensor, keys: list[str]) -> Iterator[tuple[str, Process]]:
        config, task, agents = self.config, self.task, self._agents
        seeds = row_seeds(config.seed, 0, keys)
        solvers: dict[str, Callable[[], Fill]] = {
            "points": lambda: network(agents["points"], task),
            "levin": lambda: solved(Levin(), task),
            "bilateral": lambda: solved(config.bilateral, task),
        }
        for name in config.methods:
            if name in (ASKED, ASKED_EXACT):
                agent = agents["asked" if name == ASKED else "exact"]
                yield name, process(agent, task, pixels, config.hints)
            elif name == NONE:
                yield name, process(OnOneMap(network(agents["none"], task)), task, pixels, 0)
            else:
                kind, _, place = name.partition("_")
                where: QuestionFunction = AtLargestError(truth, self.side)
                if place == RANDOM:
                    where = at_random(seeds, config.hints, self.side)
                yield name, process(OnOneMap(solvers[kind]()), task, pixels, config.hints, question=where)

    def _error(self, pixels: Tensor, truth: Tensor) -> Tensor:
        """E [B, H, W] float64."""
        x = self.task.observe(to_unit(pixels))
        nothing = x.new_zeros(len(x), 1 + self.task.answered, *x.shape[2:])
        y = network(self._agents["none"], self.task)(x, nothing[:, :1], nothing[:, 1:])
        return (y - truth).abs().double().mean(1)


def solved(solver: Solver, task: Task) -> Fill:
    """A solve of each picture; x is its lightness in -1..1 (L of a photograph, a drawing's paper and ink)."""
    if task.observed != 1 or task.answered != task.produced:
        raise ValueError(f"colours cannot be solved for in task {task.name!r}: it shows no picture of lightness")

    def filled(x: Tensor, known: Tensor, hints: Tensor) -> Tensor:
        light, given, told = (part.cpu().numpy() for part in ((x[:, 0] + 1) / 2, known[:, 0] > 0, hints))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # SuperLU does not hold the interpreter's lock
            found = list(pool.map(solver, light, given, told))
        return torch.from_numpy(np.stack(found)).to(x.device, x.dtype)

    return filled


def _meaning(name: str) -> str:
    if name in MEANING:
        return MEANING[name]
    kind, _, place = name.partition("_")
    return f"{POINTS[kind]}, told " + ("random squares" if place == RANDOM else "the square with the largest error")
