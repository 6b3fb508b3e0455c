"""Are there known holes in the pinned versions? pip-audit asks PyPI; it lives in an environment of its own.

Exit status 1 only where there are some: a database out of reach is said in one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path


def main(pinned: str) -> int:
    home = Path(sys.prefix) / "audit"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "pip-audit"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        return said("audit: pip-audit cannot be installed here, so nothing was checked")
    ask = [str(python), "-m", "pip_audit", "-r", pinned, "--no-deps", "--disable-pip", "--format", "json"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=False, timeout=300)
        packages = json.loads(answer.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return said("audit: the database of known holes cannot be reached, so nothing was checked")
    checked = [package for package in packages if "vulns" in package]
    holes = [(p["name"], p["version"], hole) for p in checked for hole in p["vulns"]]
    for name, version, hole in holes:
        print(f"audit: {name} {version}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}")
    if not checked:
        return said("audit: the database of known holes cannot be reached, so nothing was checked")
    print(f"audit: {len(checked)} of {len(packages)} packages checked, {len(holes)} known holes")
    return int(bool(holes))


def said(line: str) -> int:
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
