"""What every job's config shares, and how YAML and ``--set`` become one: strictly, and with errors that help.

Paths: a field of type ``Location`` that is neither absolute nor a URL is relative to the folder of the config file that
names it; one given by ``--set`` is relative to the current folder, as a shell user expects. ``${NAME}`` and ``~`` in
it are expanded, and an unset variable is an error.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from jobs.mistakes import kind_of, plain_kinds, told
from pipeline.errors import UsageError
from pipeline.images import Limits
from pipeline.options import Options, Resources, aloud

if TYPE_CHECKING:
    from pipeline.run import Run

_SHOWN = 12  # errors told at once


class _Typed(str):
    """A string that came from ``--set``."""


def _expanded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$\{(\w+)\}", value):
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set")
    text = re.sub(r"\$\{(\w+)\}", lambda m: os.environ[m[1]], value)
    return os.path.expanduser(text) if text.startswith("~") else text


def located(value: Any, info: ValidationInfo) -> Any:
    text = _expanded(value)
    if not isinstance(text, str) or not text or "://" in text or os.path.isabs(text):
        return text
    folder = None if isinstance(value, _Typed) else (info.context or {}).get("folder")
    return os.path.normpath(os.path.join(folder, text)) if folder else text


def located_if_file(value: Any, info: ValidationInfo) -> Any:
    text = _expanded(value)
    if isinstance(text, str) and ("/" in text or text.startswith(".") or re.search(r"\.(pth|pt|safetensors)$", text)):
        return located(value, info)
    return text


Location = Annotated[str, BeforeValidator(located)]  # a file or folder, or a URL
LocationOrName = Annotated[str, BeforeValidator(located_if_file)]  # weights: an enum's name, a file, or a URL
RunLocation = Annotated[str, BeforeValidator(_expanded)]  # relative to the current folder: where results go


class Section(BaseModel):
    """A part of a config: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, values: Any) -> Any:
        # YAML's `yes` is a truth value, which pydantic would take for 1.
        for name, value in values.items() if isinstance(values, dict) else ():
            kinds = plain_kinds(cls.model_fields[name].annotation) if name in cls.model_fields else set()
            if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
                raise ValueError(f"{name}: {str(value).lower()} is true or false, expected a number")
        return values

    @field_validator("*", mode="after")
    @classmethod
    def _plain_text(cls, value: Any) -> Any:
        if isinstance(value, _Typed):
            return str(value)
        if isinstance(value, (list, tuple)) and any(isinstance(v, _Typed) for v in value):
            return type(value)(str(v) if isinstance(v, _Typed) else v for v in value)
        return value


class ResourcesConfig(Section):
    """What a run may use; nothing here changes what is computed."""

    address: str | None = None  # of a running Ray cluster; absent: one is started here
    mode: Literal["auto", "inline", "spread"] = "auto"
    cpus: int | None = Field(default=None, ge=1)  # of a cluster started here
    gpus: int | None = Field(default=None, ge=0)  # the same; on any other 0: CPU workers, N: so many are asked for
    max_workers: int | None = Field(default=None, ge=1)  # at a time, of places there are and those an autoscaler brings
    cpus_per_actor: int | None = Field(default=None, ge=1)
    gpus_per_actor: float = Field(default=1.0, gt=0)
    price_per_hour: float | None = Field(default=None, ge=0)  # of one worker, for the estimate
    shard_rows: int | None = Field(default=None, ge=1)  # instead of about a minute's work
    micro_batch: int | None = Field(default=None, ge=1)  # instead of what the method proposes
    train_workers: int | None = Field(
        default=None, ge=0
    )  # absent: as many as there are GPUs and divide the batch, else the driver trains; 0: it does


class JobConfig(Section):
    """What every job has."""

    run: RunLocation | None = None  # the run folder, unless --run gives it
    label: str = ""  # the user's name for this setting of the reductions; changes nothing else
    seed: int = Field(default=0, ge=0)
    allow_failed: float = Field(default=0.0, ge=0, le=1)  # share of failed rows that still counts as success
    resources: ResourcesConfig = ResourcesConfig()
    images: Limits = Limits()  # what an image may cost; part of the fingerprint, so jobs hand it to their Job

    def options(
        self,
        *,
        only: tuple[str, ...] = (),
        code_path: tuple[str, ...] = (),
        say: Callable[[str], None] = aloud,
        yes: bool = False,
        retry_failed: bool = False,
    ) -> Options:
        """How to run this config: what ``pipeline.engine.execute`` takes."""

        return Options(
            resources=Resources(**self.resources.model_dump()),
            allow_failed=self.allow_failed,
            only=only,
            code_path=code_path,
            say=say,
            yes=yes,
            retry_failed=retry_failed,
        )


Config = TypeVar("Config", bound=BaseModel)


def load_config(cls: type[Config], path: str | Path, sets: Sequence[str] = ()) -> Config:
    """Read a YAML config, lay ``a.b=c`` settings over it, and check it; UsageError names field, value and cure."""
    return check_file(cls, path, read_values(path, sets), sets)


def read_values(path: str | Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML config's values with the settings laid over them, unchecked: needs no job's class."""
    values = _read(Path(path))
    for setting in sets:
        _lay(values, setting)
    return values


def check_file(cls: type[Config], path: str | Path, values: Mapping[str, Any], sets: Sequence[str] = ()) -> Config:
    """The config of the values that ``read_values`` found in ``path``."""
    return check(cls, values, where=str(path), folder=str(Path(path).resolve().parent), sets=sets)


def config_of(cls: type[Config], run: Run, described: Mapping[str, Any]) -> Config:
    """The config that a run was made with; UsageError where this version takes it no more."""
    cure = "another version of Raylens made the run: use that one, or mend the config and give it another --run"
    return check(cls, described["config"], where=f"config in {run.folder.path('run.json')}", cure=cure)


def check(
    cls: type[Config],
    values: Mapping[str, Any],
    *,
    where: str,
    folder: str | None = None,
    sets: Sequence[str] = (),
    cure: str = "",
) -> Config:
    """A config of plain values; UsageError tells every mistake at once."""
    try:
        return cls.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        lines = list(dict.fromkeys(told(cls, dict(e), sets) for e in error.errors(include_url=False)))
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        text = lines[0] if len(lines) == 1 else "\n    ".join([f"{len(lines)} mistakes:", *lines[:_SHOWN], *more])
        raise UsageError(text, where=where, cure=cure) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        here = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, here, n=1)
        cure = f"did you mean '{path.parent / near[0]}'?" if near else "check the path"
        raise UsageError("there is no such config file", where=str(path), cure=cure) from None
    except UnicodeDecodeError:
        raise UsageError("is no UTF-8 text", where=str(path), cure="give a YAML config") from None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path), cure="give a YAML config") from None
    values = _parsed(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"a config is a mapping of fields, not {kind_of(values)}", where=str(path))
    return values


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number and refuses a field given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' is given twice in one mapping", key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"YAML: {error.problem or error.context}", where=where + place) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"YAML: {str(error).splitlines()[0]}", where=where) from None


def _lay(values: dict[str, Any], setting: str) -> None:
    """Lay one ``a.b=c`` over the values; ``a.0.b`` reaches into a list."""
    path, equals, text = setting.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"'{setting}' is no setting", where="--set", cure="write it as field.name=value")
    value = _from_shell(_parsed(text, f"--set {path}"))
    at: Any = values
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        so_far = ".".join(names[:depth])
        if isinstance(at, list):
            if not name.isdigit() or int(name) >= len(at):
                raise UsageError(
                    f"'{so_far}' is a list of {len(at)}; '{name}' is none of its places (0 is the first)",
                    where=f"--set {setting}",
                )
            if last:
                at[int(name)] = value
            at = at[int(name)]
        elif isinstance(at, dict):
            if last:
                at[name] = value
            elif at.get(name) is None:
                at[name] = {}
            at = at[name]
        else:
            raise UsageError(
                f"'{so_far}' is {kind_of(at)}, so it has no field '{name}'",
                where=f"--set {setting}",
                cure=f"--set {so_far}=... replaces it",
            )


def _from_shell(value: Any) -> Any:
    if isinstance(value, str):
        return _Typed(value)
    if isinstance(value, list):
        return [_from_shell(v) for v in value]
    if isinstance(value, dict):
        return {k: _from_shell(v) for k, v in value.items()}
    return value
