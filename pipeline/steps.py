"""What a job is made of: steps that measure, reduce or train, and what flows into them.

The protocols say what the engine asks of a method. Methods do not import them (they know tensors, not the engine);
mypy checks them where a job wires the two together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from pipeline import images

if TYPE_CHECKING:
    from pipeline.learnt import Learnt
    from pipeline.train_worker import Worker

Wants = Literal["pixels", "bytes", "records"]


@runtime_checkable
class Stage(Protocol):
    """A measuring method: rows of a key table in, one result row each out.

    It may also have ``begin()``, called before each shard, and ``notes``, a list of what went otherwise than planned
    since then: the shard's receipt keeps it.

    ``device`` is a torch.device; for a stage whose module and inputs import no torch it is its name, so that workers
    of such a stage start without waiting for torch.
    """

    @property
    def version(self) -> int: ...

    @property
    def wants(self) -> Wants: ...

    @property
    def config(self) -> Any:
        """A frozen dataclass: its fields are the step's fingerprint."""
        ...

    @property
    def schema(self) -> pa.Schema: ...

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]: ...

    def setup(self, device: Any, inputs: Mapping[str, Any]) -> None: ...

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]: ...

    def micro_batch(self, device: Any) -> int: ...


@runtime_checkable
class Reduction(Protocol):
    """Rows of upstream shards in, an answer out, block by block."""

    @property
    def version(self) -> int: ...

    @property
    def aligned(self) -> bool:
        """Block i reads only part i of the upstream reduction."""
        ...

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def config(self) -> Any: ...

    @property
    def schema(self) -> pa.Schema: ...

    def blocks(self) -> list[Any]: ...

    def start(self, block: Any) -> Any: ...

    def add(self, state: Any, table: pa.Table) -> Any: ...

    def merge(self, left: Any, right: Any) -> Any: ...

    def finish(self, block: Any, state: Any) -> pa.Table: ...

    def summary(self, table: pa.Table) -> dict[str, Any]: ...

    def state_bytes(self, block: Any) -> int: ...


class Trainer(Protocol):
    """A training: called on every worker of it. Picklable; loads nothing heavy before it is called.

    It may have ``untrained(inputs) -> Learnt``: what a training of no epochs would return, as far as the steps that
    stand on it read it. Its networks take the time that trained ones take, so ``raylens plan`` measures with them.
    """

    @property
    def version(self) -> int: ...

    @property
    def config(self) -> Any:
        """A frozen dataclass: its fields are the step's fingerprint."""
        ...

    def __call__(self, worker: Worker) -> Learnt: ...


class Input(Protocol):
    """Something heavy a stage needs beside its rows, loaded once on each worker."""

    def digest(self) -> str:
        """What it is, as a fingerprint field (the sha256 of the weights, say)."""
        ...

    def load(self, device: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Measure:
    """A step that gives every key of its splits one row."""

    name: str
    stage: Stage
    splits: tuple[str, ...]
    inputs: Mapping[str, Input] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, str] = dataclasses.field(default_factory=dict)  # input name -> upstream reduction
    trained: Mapping[str, str] = dataclasses.field(default_factory=dict)  # input name -> upstream training

    @property
    def upstream(self) -> tuple[str, ...]:
        return (*self.tables.values(), *self.trained.values())


@dataclasses.dataclass(frozen=True)
class Reduce:
    """A step that turns upstream rows into an answer; runs of other settings stand beside it."""

    name: str
    reduction: Reduction
    of: str  # the upstream step
    splits: tuple[str, ...] = ()  # of the upstream measuring step; empty: all of them
    label: str = ""  # the user's name for this setting, in no fingerprint

    @property
    def upstream(self) -> tuple[str, ...]:
        return (self.of,)


@dataclasses.dataclass(frozen=True)
class Train:
    """A step that learns something: files and facts in RUN/<name>/result, and checkpoints on the way there."""

    name: str
    trainer: Trainer
    splits: tuple[str, ...] = ()  # whose frozen key tables it reads: their digests are in the fingerprint
    inputs: Mapping[str, Input] = dataclasses.field(default_factory=dict)  # heavy things, loaded on each worker

    @property
    def upstream(self) -> tuple[str, ...]:
        return ()


Step = Measure | Reduce | Train


@dataclasses.dataclass(frozen=True)
class Job:
    """A static graph of steps in an order in which each stands on earlier ones only.

    ``sources`` gives for each split a callable that lists it (called once: the key table is then frozen) and the
    description that must not change afterwards.
    """

    name: str
    config: dict[str, Any]
    sources: Mapping[str, Source]
    steps: tuple[Step, ...]
    limits: images.Limits = dataclasses.field(
        default_factory=images.Limits
    )  # decides which images are read, and how: part of fingerprints

    def step(self, name: str) -> Step:
        return next(s for s in self.steps if s.name == name)

    def keyed(self, name: str) -> bool:
        """Whether a step's folder carries its fingerprint: reductions, and all that stands on one or on a training."""
        step = self.step(name)
        return isinstance(step, Reduce) or any(isinstance(self.step(u), Train) or self.keyed(u) for u in step.upstream)


@dataclasses.dataclass(frozen=True)
class Source:
    """How a split is listed, and the description that its frozen key table answers for."""

    description: Mapping[str, Any]
    list: Callable[[], pa.Table]


def config_fields(config: Any) -> dict[str, Any]:
    """The fingerprinted fields of a frozen dataclass, as plain JSON values; nested dataclasses are followed."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if not field.metadata.get("fingerprint", True):
            continue
        value = getattr(config, field.name)
        fields[field.name] = config_fields(value) if dataclasses.is_dataclass(value) else _plain(value)
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def row_schema(stage: Stage) -> pa.Schema:
    """A measuring step's columns: the engine's three, then the method's."""
    engine = [
        pa.field("key", pa.string(), nullable=False, metadata={"meaning": "stable id of the row within its split"}),
        pa.field("status", pa.string(), nullable=False, metadata={"meaning": "ok, filtered or failed"}),
        pa.field("error", pa.string(), metadata={"meaning": "why the row is not ok"}),
    ]
    return pa.schema([*engine, *stage.schema])
