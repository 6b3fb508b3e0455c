"""Files that are not what they should be: an answer or an error of ours, never another one, and never a hang.

Valid files are spoilt a little, so that inputs reach beyond the first check. ``make fuzz`` tries many more of them,
other ones each time; counts are in RESULTS.md. An input may take ten seconds of CPU time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from judging import judged, put, tries
from spoilt import ODD_TEXTS, spoilt_bytes, spoilt_values
from spoilt_run import MEASURED, made_run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("counts")


# Configs


@pytest.fixture(scope="module")
def configs(here: Path) -> Iterator[list[tuple[type, str, dict[str, Any]]]]:
    import importlib

    from jobs.commands.job import JOBS

    found = []
    for path in sorted((ROOT / "jobs/configs").glob("*.yaml")):
        name = path.name.split("-")[0].replace("objects", "compare")
        module, kind, _ = JOBS[name]
        found.append(
            (getattr(importlib.import_module(module), kind), path.read_text(), yaml.safe_load(path.read_text()))
        )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ADE20K", "COCO", "COCO_RUN", "CYCLEGAN", "DATA", "EDSR", "ILSVRC", "MSRA", "PLACES", "VOC"):
            patch.setenv(name, str(here))
        yield found


@tries(60)
@given(data=st.data())
def test_configs(here: Path, configs: list, data: st.DataObject) -> None:
    from jobs.config import load_config

    cls, text, values = data.draw(st.sampled_from(configs))
    if data.draw(st.booleans()):
        written = data.draw(spoilt_bytes(text.encode()))
    else:
        written = yaml.safe_dump(data.draw(spoilt_values(values))).encode(errors="surrogatepass")
    names = st.sampled_from(["seed", "resources.cpus", "images", "data.fit", "model.name", "label", "a.b", "", "0"])
    sets = [f"{data.draw(names)}={data.draw(ODD_TEXTS)}"] if data.draw(st.booleans()) else []
    with judged("configs"):
        load_config(cls, put(here / "config.yaml", written), sets)


@tries(40)
@given(written=spoilt_bytes(b"# of the job\nexport A=1\nNAME='a value'\n\nOTHER=x=y\n"))
def test_environment_files(here: Path, written: bytes) -> None:
    from pipeline.submission import environment_file

    with judged("environment files"):
        environment_file(Path(put(here / "job.env", written)))


# What a run folder holds


@tries(150)
@given(data=st.data())
def test_receipts_plans_and_locks(data: st.DataObject) -> None:
    from pipeline.lock import Owner
    from pipeline.plan import Plan, new_plan
    from pipeline.shards import DataFile, Receipt

    receipt = Receipt(3, (DataFile("part-00003-of-00008-aaaaaaaa.parquet", 10, "a" * 64),), {"ok": 3}, notes=("n",))
    plan = new_plan("sweep", "fit", {"a": 1}, 100, 8, MEASURED, 16)
    cases: list[tuple[bytes, Callable[[bytes], Any]]] = [
        (receipt.to_json(), Receipt.from_json),
        (plan.to_json(), lambda found: Plan.from_json(found, "plan.json").range(0)),
        (Owner.me().to_json(), lambda found: Owner.from_json(found).dead),
    ]
    whole, read = data.draw(st.sampled_from(cases))
    with judged("receipts, plans, locks"):
        read(_spoilt_json(data, whole))


def _spoilt_json(data: st.DataObject, whole: bytes) -> bytes:
    if data.draw(st.booleans()):
        return data.draw(spoilt_bytes(whole))
    return json.dumps(data.draw(spoilt_values(json.loads(whole)))).encode(errors="surrogatepass")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, bytes]]:
    """A finished run with a reduction, a quarantine, a training and a compacted copy; and what its files hold."""
    return made_run(tmp_path_factory.mktemp("run") / "run")


def tried(run: tuple[Path, dict[Path, bytes]], path: Path, spoilt: bytes) -> None:
    """All that reads a run folder, with one of its files spoilt."""
    from pipeline.checkpoints import CommittedCheckpoints, read_committed
    from pipeline.compact import compact
    from pipeline.quarantine import read_quarantine
    from pipeline.run import Run
    from pipeline.shards import Shards
    from pipeline.status import status
    from pipeline.storage import Folder
    from pipeline.verify import verify

    root, files = run
    reads: list[Callable[[], Any]] = [
        lambda: json.dumps(status(str(root)).to_dict()),
        lambda: json.dumps(verify(str(root)).to_dict()),
        lambda: list(Shards(Folder(f"{root}/sweep/fit"), 3).tables()),
        lambda: Run(str(root)).key_table("fit").rows(0, 25),
        lambda: Run(str(root)).key_table("fit").classes,
        lambda: CommittedCheckpoints(Folder(f"{root}/learn/checkpoints")).latest(),
        lambda: read_committed(Folder(f"{root}/learn/checkpoints/0002")),
        lambda: read_quarantine(Folder(f"{root}/sweep/fit/quarantine"), 0),
        lambda: compact(str(root)),
        lambda: verify(str(root), repair=True, clean=True),
    ]
    path.write_bytes(spoilt)
    try:
        for read in reads:
            with judged("files of a run folder, each read in ten ways"):
                read()
    finally:
        restore(root, files)


@tries(30)
@given(data=st.data())
def test_run_folders(run: tuple[Path, dict[Path, bytes]], data: st.DataObject) -> None:
    _, files = run
    path = data.draw(st.sampled_from(sorted(files)))
    spoilt = _spoilt_json(data, files[path]) if path.suffix == ".json" else data.draw(spoilt_bytes(files[path]))
    tried(run, path, spoilt)


# What was found once, and raised something else.
FOUND = [
    ("keys/fit.parquet", b""),
    ("keys/fit.json", b'{"rows": 25, "source": {}}'),
    ("run.json", b'{"steps": [{"kind": "measure"}]}'),
    ("sweep/fit/quarantine/00000.json", b"3"),
    ("sweep/fit/quarantine/00000.json", b'{"a'),
    ("learn/checkpoints/0002/receipt.json", b'{"files": {"model": {"file": "m", "bytes": 1, "sha256": "zz"}}}'),
    (
        "learn/checkpoints/0002/receipt.json",
        b'{"files": {"model": {"file": "../../run.json", "bytes": 1, "sha256": []}}}',
    ),
    ("compact/sweep/fit/manifest.json", b'{"files": []}'),
    *(
        ("compact/sweep/fit/manifest.json", b'{"files": [{%s, "bytes": 1, "sha256": ""}], "sources": []}' % spoilt)
        for spoilt in (
            b'"name": "a", "rows": "x"',
            b'"name": ".", "rows": 1',
            b'"name": "../../../run.json", "rows": 1',
        )
    ),
]


@pytest.mark.parametrize(("name", "spoilt"), FOUND)
def test_what_was_found(run: tuple[Path, dict[Path, bytes]], name: str, spoilt: bytes) -> None:
    tried(run, run[0] / name, spoilt)


def test_a_shard_whose_pages_are_damaged_is_told(run: tuple[Path, dict[Path, bytes]]) -> None:
    _, files = run
    path = next(p for p in files if p.name.startswith("part-00000-of-00003"))
    tried(run, path, files[path][:40] + b"\xff" * 20 + files[path][60:])


def restore(root: Path, files: dict[Path, bytes]) -> None:
    for path in [p for p in root.rglob("*") if p.is_file() and p not in files]:
        path.unlink()
    for path, whole in files.items():
        if not path.exists() or path.read_bytes() != whole:
            put(path, whole)
