"""``raylens submit``, ``jobs`` and ``stop``: a job's config goes to a cluster as it was understood here."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from pipeline.errors import UsageError
from pipeline.models import ModelSpec
from pipeline.provenance import config_digest
from pipeline.redaction import has_password
from pipeline.submission import DEFAULT_ADDRESS, JobServer, Submitted

if TYPE_CHECKING:
    from jobs.config import JobConfig

_PACKAGES = ("pipeline", "stages", "jobs")
_TREE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Submission:
    """What to submit, where, and as what."""

    job: str
    settings: JobConfig
    run: str
    address: str = DEFAULT_ADDRESS
    name: str = ""
    flags: tuple[str, ...] = ()  # of the command that runs there
    env: dict[str, str] = field(default_factory=dict)
    code: str = "auto"  # "tree": this working tree goes along; "installed": what the cluster has; "auto": as it is here
    code_path: tuple[str, ...] = ()  # where the user's own modules lie
    python: str = "python"  # on the head
    insecure: bool = False


def submit(asked: Submission) -> tuple[Submitted, list[str]]:
    """Start the job on the cluster, or join the one that works on this run already; and what the user should know."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", asked.name or asked.job):
        raise UsageError(f"'{asked.name}' is no name for a job", where="--name", cure="use letters, digits, - and _")
    run = asked.run if "://" in asked.run else os.path.abspath(asked.run)
    _refuse_passwords(run, asked.settings)
    server = JobServer(asked.address, insecure=asked.insecure)
    command = [
        asked.python,
        "-m",
        "jobs.cli",
        asked.job,
        "config.yaml",
        "--run",
        run,
        "--address",
        "auto",
        *asked.flags,
    ]
    config = config_digest([asked.job, asked.settings.model_dump(mode="json"), asked.flags])
    running = {job.id: job for job in server.jobs() if not job.over}
    with _files(asked.settings, asked.code_path) as folder:
        modules = _modules(asked.code)
        found = server.submit(
            command, run, name=asked.name or asked.job, config=config, files=folder, modules=modules, env=asked.env
        )
    if found.id not in running:
        return found, _local_paths(asked, run)
    other = "" if found.config == config else ", with another config than this one: 'raylens stop' it to use this"
    return found, [f"a job works on this run already{other}; joined it"]


def _refuse_passwords(run: str, settings: JobConfig) -> None:
    """The cluster shows a job's command and metadata to all who see its dashboard, and keeps its files."""
    cure = "credentials come from the environment only"
    if has_password(run):
        raise UsageError("has a password in it", where=run, cure=cure)
    for url in _texts(settings.model_dump(mode="json")):
        if has_password(url):
            raise UsageError("has a password in it", where=url, cure=cure)


def _local_paths(asked: Submission, run: str) -> list[str]:
    """Paths are looked up on the cluster's machines: those of this one are named."""
    paths = [run] if "://" not in run else []
    found = _texts(asked.settings.model_dump(mode="json"))
    paths += sorted({text for text in found if os.path.isabs(text) and os.path.exists(text)})
    if not paths:
        return []
    return [f"paths, which every node must have (s3:// and gs:// are seen by all): {', '.join(paths)}"]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from (*_texts(name), *_texts(part))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def follow(address: str, id: str, *, insecure: bool = False) -> int:
    """Show a job's output until it ends; the exit status of its command. Ctrl-C leaves it running."""
    server = JobServer(address, insecure=insecure)
    try:
        job = server.follow(id, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        where = "" if address == DEFAULT_ADDRESS else f" --address {address}"
        print(f"\nno longer following; {id} goes on.  raylens stop {id}{where}  ends it", file=sys.stderr)
        return 130
    if job.status == "SUCCEEDED":
        return 0
    print(f"{id} {job.status.lower()}: {job.message.strip().splitlines()[0] if job.message else ''}", file=sys.stderr)
    return job.exit_code or 1


@contextlib.contextmanager
def _files(settings: JobConfig, code_path: Sequence[str]) -> Iterator[Path]:
    """The job's working folder: its config, resolved, so that paths and variables mean there what they mean here, and
    the user's own modules that it names."""
    with tempfile.TemporaryDirectory(prefix="raylens-submit-") as name:
        folder = Path(name)
        text = yaml.safe_dump(settings.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        (folder / "config.yaml").write_text(text)
        for module in {spec.name.partition(":")[0].partition(".")[0] for spec in _models(settings) if ":" in spec.name}:
            _copy_module(module, code_path, folder)
        yield folder


def _models(value: Any) -> Iterator[ModelSpec]:
    """Every network a config names."""
    if isinstance(value, ModelSpec):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _models(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _models(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _models(part)


def _copy_module(module: str, code_path: Sequence[str], folder: Path) -> None:
    """A file or package that lies beside the config or in the current folder; what is installed stays there."""
    spec = PathFinder.find_spec(module, list(code_path))
    if spec is None or module in _PACKAGES:
        return
    if spec.submodule_search_locations:
        for place in spec.submodule_search_locations:
            shutil.copytree(place, folder / module, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    elif spec.origin:
        shutil.copy(spec.origin, folder)


def _modules(code: str) -> list[Path]:
    """The packages of this working tree; none where the cluster's own installation is to be used."""
    tree = (_TREE / "pyproject.toml").is_file()
    if code == "tree" and not tree:
        raise UsageError("there is no working tree here", where="--code", cure="use --code installed")
    return [_TREE / name for name in _PACKAGES] if tree and code != "installed" else []
