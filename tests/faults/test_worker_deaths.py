"""Workers really killed: the rows equal those of an undisturbed run, and only the guilty are missing."""

from __future__ import annotations

import dataclasses
import json

import pytest
from toys import toy_job

from jobs.show import status_lines
from pipeline.engine import execute
from pipeline.errors import RaylensError
from pipeline.options import Options, Resources
from pipeline.quarantine import write_quarantine
from pipeline.status import status
from pipeline.storage import Folder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)


def events(run, kind):
    lines = [line for file in sorted((run / "events").glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.mark.parametrize("fault", ["mid-shard", "before receipt", "after receipt"])
def test_a_killed_worker_loses_and_doubles_nothing(cluster, tmp_path, rows_of, undisturbed, fault, capfd):
    (tmp_path / "markers").mkdir()
    run = tmp_path / "run"
    outcome = execute(toy_job(200, fault=fault, markers=str(tmp_path / "markers")), str(run), QUIET)
    assert outcome.exit_code == 0
    assert outcome.totals["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert len(list((tmp_path / "markers").iterdir())) == 3, "workers were not killed: this test shows nothing"
    assert events(run, "death")
    assert rows_of(run).equals(undisturbed)
    receipts = [json.loads(file.read_text()) for file in (run / "measure/all/receipts").iterdir()]
    named = {receipt["files"][0]["name"] for receipt in receipts}
    assert {f.name for f in (run / "measure/all").glob("part-*")} == named, "orphans are left"
    said = capfd.readouterr()
    assert "a worker was lost in shard" in said.err
    assert "A worker died" not in said.out + said.err, "Ray tells the same again"


@pytest.mark.long
def test_a_key_that_always_kills_is_quarantined_alone(cluster, tmp_path, rows_of, undisturbed):
    """One kills when it is computed, one already when it is decoded (and is met by the micro-run)."""
    poison = ("000029", "000101")
    outcome = execute(toy_job(200, poison=poison[:1], deadly=poison[1:]), str(tmp_path / "run"), QUIET)
    assert outcome.exit_code == 3
    assert outcome.totals["measure"] == {"ok": 198, "filtered": 0, "failed": 2}
    rows = rows_of(tmp_path / "run")
    failed = {row["key"]: row["error"] for row in rows.to_pylist() if row["status"] == "failed"}
    assert sorted(failed) == sorted(poison)
    assert all("killed its worker 3 times" in reason for reason in failed.values())
    for name in ("number", "vector"):
        ok = [r[name] for r in rows.to_pylist() if r["key"] not in poison]
        assert ok == [r[name] for r in undisturbed.to_pylist() if r["key"] not in poison]
    alone = [e for e in events(tmp_path / "run", "death") if e.get("inside") and e["inside"][1] - e["inside"][0] == 1]
    assert len(alone) == 6, "each killer is proven three times alone"


def test_failed_rows_are_made_again_on_request_and_nothing_else_is(cluster, tmp_path, rows_of, undisturbed):
    """Mended outside of what the fingerprint sees: another library, more memory."""
    run, bad = tmp_path / "run", {"bad": ("000030", "000150"), "poison": ("000031",)}
    write_quarantine(Folder(str(run / "measure/all/quarantine")), 1, {"000031": "quarantined: it alone killed"})
    first = execute(toy_job(200, **bad), str(run), QUIET)
    assert first.totals["measure"]["failed"] == 3
    receipts = run / "measure/all/receipts"
    before = {f.name: f.stat().st_mtime_ns for f in receipts.iterdir()}
    assert execute(toy_job(200, **bad, mended="yes"), str(run), QUIET).exit_code == 3, "only on request"
    assert "--retry-failed" in "\n".join(status_lines(status(str(run))))
    said = []
    again = dataclasses.replace(QUIET, retry_failed=True, say=said.append)
    outcome = execute(toy_job(200, **bad, mended="yes"), str(run), again)
    assert outcome.exit_code == 0
    assert rows_of(run).equals(undisturbed)
    after = {f.name: f.stat().st_mtime_ns for f in receipts.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"00001.json", "00006.json"}
    assert not list((run / "measure/all/quarantine").iterdir())
    assert "step 'measure': 2 shards of 'all' are made again for 3 failed rows" in said
    assert outcome.fingerprints["sum"] != first.fingerprints["sum"], "what stands on them is computed again"
    said.clear()
    execute(toy_job(200, **bad, mended="yes"), str(run), again)
    assert said == [], "nothing failed any more"
    assert "--retry-failed" not in "\n".join(status_lines(status(str(run))))


def test_a_row_at_which_the_stage_raises_fails_alone(cluster, tmp_path, rows_of, undisturbed):
    outcome = execute(toy_job(200, bad=("000007", "000150")), str(tmp_path / "run"), QUIET)
    assert outcome.exit_code == 3
    rows = rows_of(tmp_path / "run").to_pylist()
    failed = {row["key"]: row["error"] for row in rows if row["status"] == "failed"}
    assert failed == {k: f"RuntimeError: cannot digest {k}" for k in ("000007", "000150")}
    assert [r for r in rows if r["status"] == "ok"] == [r for r in undisturbed.to_pylist() if r["key"] not in failed]


def test_allowed_failures_do_not_change_the_exit_code(cluster, tmp_path):
    options = Options(resources=Resources(shard_rows=24), allow_failed=0.01, say=lambda _: None)
    assert execute(toy_job(200, bad=("000007", "000150")), str(tmp_path / "a"), options).exit_code == 0
    assert execute(toy_job(200, bad=("000007", "000150", "000151")), str(tmp_path / "b"), options).exit_code == 3


def test_a_stage_that_cannot_be_set_up_is_one_clear_error(cluster, tmp_path, monkeypatch):
    job = toy_job(200, fault="after receipt", markers=str(tmp_path / "absent"))
    with pytest.raises(RaylensError, match="failed 3 times"):
        execute(job, str(tmp_path / "run"), QUIET)
