"""The heavy things a step is handed, on the worker that needs them, and proof that they are what the driver saw."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from pipeline.errors import RaylensError
from pipeline.steps import Input


def load_inputs(inputs: Mapping[str, Input], device: Any, digests: Mapping[str, str]) -> dict[str, Any]:
    """Each input on the device.

    Raises RaylensError for one that is here other than in ``digests``: rows of two networks would stand under the
    fingerprint of one.
    """
    found = {}
    for name, given in inputs.items():
        found[name] = given.load(device)
        if name in digests and given.digest() != digests[name]:
            raise RaylensError(
                f"the step's input '{name}' is another one than where the run was started",
                where=f"node {platform.node()}",
                cure="what it is read from differs there, or was changed since (of a URL an older copy may lie in "
                "torch.hub's folder): let every node read the same, then run again",
            )
    return found


def input_digests(inputs: Mapping[str, Input], fields: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each input, as it stands in the fields of a step's fingerprint."""
    return {name: str(fields[f"inputs.{name}"]) for name in inputs}
