"""What ran: versions, hardware, command line. No environment, and nothing that looks like a secret."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.redaction import redact

_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pyarrow", "pandas", "pillow", "scipy")


def provenance(config: Any = None, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What ran, as plain JSON values.

    ``config`` is the resolved job config (a mapping); its digest is kept. ``argv`` defaults to the process's own.
    Versions come from the installed packages' metadata: nothing is imported for them.
    """
    found: dict[str, Any] = {
        "raylens": _version("raylens"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cpus": cpu_count(),
        "gpus": _gpus(),
        "argv": redact(sys.argv if argv is None else argv),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if config is not None:
        found["config_digest"] = config_digest(config)
    return found


def config_digest(config: Any) -> str:
    """sha256 of the config's canonical JSON: the same for the same values in any order."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def cpu_count() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this code runs from, ``+`` after it where files were changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _tell("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+" if _tell("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no") else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _tell("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Name and memory of each GPU of this machine, as the driver tells."""
    return _tell("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines()


def _tell(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
