"""A worker that comes to no end does not hold the run up: another makes its shard, and the first receipt stands."""

from __future__ import annotations

import functools
import json

import pytest
from toys import toy_job

from pipeline.engine import execute
from pipeline.late import Late
from pipeline.options import Options, Resources

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_a_shard_that_hangs_is_made_by_another_worker(
    cluster, tmp_path, rows_of, undisturbed, capfd, monkeypatch
) -> None:
    """Two workers; one stops for an hour in the middle of a shard (and of the run)."""
    monkeypatch.setattr("pipeline.loop.Late", functools.partial(Late, least_s=1.5))
    monkeypatch.setattr("pipeline.loop._GRACE_S", 0.5)
    (tmp_path / "markers").mkdir()
    run, said = tmp_path / "run", []
    options = Options(resources=Resources(shard_rows=24, cpus_per_actor=1), say=said.append)
    outcome = execute(toy_job(200, fault="hang", markers=str(tmp_path / "markers")), str(run), options)
    assert (tmp_path / "markers/hung").exists(), "nothing hung: this test shows nothing"
    assert outcome.totals["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert rows_of(run).equals(undisturbed)
    assert "shard all/00006 is late: a second worker makes it, too" in capfd.readouterr().err
    lines = [json.loads(line) for file in (run / "events").glob("*.jsonl") for line in file.read_text().splitlines()]
    doubled = [e["shard"] for e in lines if e["kind"] == "start" and e.get("duplicate")]
    assert "all/00006" in doubled
    assert [e["shard"] for e in lines if e["kind"] == "commit"].count("all/00006") == 1
    assert not [e for e in lines if e["kind"] == "death"], "a worker let go is no death"
    assert any("late shard" in line and line.startswith("step 'measure': 0 attempts repeated") for line in said)


def test_a_worker_that_hangs_where_there_is_no_other_is_ended_and_replaced(
    cluster, tmp_path, rows_of, undisturbed, capfd, monkeypatch
) -> None:
    """Nobody could take the shard over, so the run would wait for ever."""
    monkeypatch.setattr("pipeline.silence._LEAST_S", 3.0)
    monkeypatch.setattr("pipeline.silence._FACTOR", 0.0)
    monkeypatch.setattr("pipeline.silence._BETWEEN_S", 0.5)
    (tmp_path / "markers").mkdir()
    run = tmp_path / "run"
    options = Options(resources=Resources(shard_rows=24, max_workers=1), say=lambda _: None)
    outcome = execute(toy_job(200, fault="hang", markers=str(tmp_path / "markers")), str(run), options)
    assert (tmp_path / "markers/hung").exists(), "nothing hung: this test shows nothing"
    assert outcome.totals["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert rows_of(run).equals(undisturbed)
    assert "shard all/00006: its worker is ended, one slice took it over" in capfd.readouterr().err
    lines = [json.loads(line) for file in (run / "events").glob("*.jsonl") for line in file.read_text().splitlines()]
    inside = [(e["shard"], e["inside"]) for e in lines if e["kind"] == "death" and e["inside"]]
    assert ("all/00006", [144, 152]) in inside
