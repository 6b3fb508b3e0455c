"""Keys that alone killed their worker again and again: one JSON object of key -> reason for each shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pipeline.errors import RaylensError
from pipeline.storage import Folder


def read_quarantine(folder: Folder, shard: int) -> dict[str, str]:
    """Keys of a shard that are not to be run, with the reason."""
    try:
        found = json.loads(folder.read(_name(shard)))
        if not isinstance(found, dict):
            raise ValueError("it is no mapping of keys to reasons")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RaylensError(
            f"this list of quarantined keys cannot be read ({error})",
            where=folder.path(_name(shard)),
            cure="remove it: its keys are tried once more, and found again where they still kill their worker",
        ) from error
    return {str(key): str(why) for key, why in found.items()}


def quarantines(folder: Folder) -> Callable[[int], dict[str, str]]:
    """``read_quarantine`` of a folder as it is now: listed once, for few shards of many have such keys."""
    there = set(folder.list())
    return lambda shard: read_quarantine(folder, shard) if _name(shard) in there else {}


def write_quarantine(folder: Folder, shard: int, entries: Mapping[str, str]) -> None:
    """Add keys to a shard's quarantine."""
    merged = {**read_quarantine(folder, shard), **entries}
    folder.write(_name(shard), json.dumps(merged, indent=1).encode())


def drop_quarantine(folder: Folder, shard: int) -> None:
    """Give the keys of a shard another chance."""
    folder.remove(_name(shard))


def _name(shard: int) -> str:
    return f"{shard:05d}.json"
