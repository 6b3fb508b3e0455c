"""What a comparison takes from elsewhere: channel weights of a solved CHIP run, and which classes stand for which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from jobs.chip.config import ChipConfig
from jobs.config import config_of
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.run import Run
from pipeline.shards import digest
from pipeline.sources.classes import Classes
from pipeline.sources.files import absolute, read_text
from pipeline.units import Unit, units


@dataclasses.dataclass(frozen=True)
class SolveInput:
    """The solve rows (layer, class_id, w, flag) of a CHIP run in its present setting."""

    run: str

    def digest(self) -> str:
        found = self._unit()
        return digest([("", r) for _, r in sorted(found.shards.complete()[0].items())])

    def load(self, device: Any) -> pa.Table:
        found = self._unit()
        columns = ["layer", "class_id", "w", "flag"]
        receipts = sorted(found.shards.complete()[0].items())
        names = found.shards.columns(receipts[0][1])
        return pa.concat_tables([found.shards.open(r, [c for c in columns if c in names]) for _, r in receipts])

    def config(self) -> ChipConfig:
        """The run's own config. UsageError where the folder is of another job."""
        described = Run(self.run).describe()
        if described.get("job") != "chip":
            raise UsageError(f"is a run of job '{described.get('job')}'", where=self.run, cure="give a CHIP run")
        return config_of(ChipConfig, Run(self.run), described)

    def require_network(self, network: NetworkInput) -> None:
        """UsageError unless the run's weights were fitted on this network."""
        if NetworkInput(self.config().model).digest() != network.digest():
            raise UsageError(
                f"its channel weights were fitted on {self.config().model.name} with other weights than the config's",
                where=self.run,
                cure="name the same model in both, or fit again",
            )

    def _unit(self) -> Unit:
        described = Run(self.run).describe()
        mark = next((s["fingerprint"] for s in described["steps"] if s["name"] == "solve"), "")
        for unit in units(Run(self.run), described):
            plan = unit.plan if unit.step == "solve" else None
            if plan is not None and plan.fingerprint == mark and len(unit.shards.complete()[0]) == plan.shards:
                return unit
        raise UsageError(
            "holds no finished solve", where=self.run, cure=f"finish it: raylens chip ... --run {self.run}"
        )


def read_objects(given: str | Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The mapping itself, or that of a YAML file: a network's class -> classes of the truth."""
    if not isinstance(given, str):
        return given
    where = absolute(given)
    try:
        found = yaml.safe_load(read_text(where))
    except yaml.YAMLError as error:
        raise UsageError(f"is no YAML: {str(error).splitlines()[0]}", where=where, cure="correct it") from error
    if not isinstance(found, Mapping):
        raise UsageError("is not a mapping", where=where, cure="write 'class of the network: [class of the truth]'")
    return found


def resolved(
    given: Mapping[Any, Any], network: Sequence[str] | None, truth: Classes | None
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Class ids for names or ids, sorted. UsageError, with near matches, for a class that is not known."""
    mine = None if network is None else Classes(list(network), "the network", {n: i for i, n in enumerate(network)})
    out: dict[int, tuple[int, ...]] = {}
    for name, of in given.items():
        names = of if isinstance(of, list | tuple) else [of]
        out[_id(name, mine, "the network's classes")] = tuple(
            sorted({_id(one, truth, "the truth's classes") for one in names})
        )
    return tuple(sorted(out.items()))


def _id(name: Any, classes: Classes | None, what: str) -> int:
    if isinstance(name, int) and not isinstance(name, bool) and name >= 0:
        return name
    if classes is None:
        raise UsageError(
            f"{what} have no names to find {name!r} by", where="objects", cure="write class ids, or name them"
        )
    return classes.index(str(name), "objects")
