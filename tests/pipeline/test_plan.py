"""Plans: shard sizes, rows' places, fingerprints and their diffs."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import plan as plans
from pipeline.errors import UsageError
from pipeline.estimate import Measured, estimate
from pipeline.storage import Folder

AT_10 = Measured(10.0, 0.01, 0.1, 4096.0, 2.0, "cpu", 1, {"networks_per_row": 100.0, "flops_per_row": 1e9})


def make(keys=1000, batch=16, rows=None, fields=None):
    return plans.new_plan("sweep", "fit", fields or {"config.gates": 100}, keys, batch, AT_10, rows)


@given(keys=st.integers(1, 2_000_000), batch=st.integers(1, 512), rate=st.floats(0.001, 1e6))
def test_shards_hold_about_a_minute_within_bounds(keys, batch, rate):
    rows = plans.shard_rows(keys, batch, rate)
    assert 1 <= rows <= min(keys, 4096)
    if keys >= 128:
        assert -(-keys // rows) >= 8, "at least eight shards"
    if rows > batch and rows != keys:
        assert rows % batch == 0, "no padding inside a shard"


def test_a_minute_of_work():
    assert plans.shard_rows(100_000, 16, 10.0) == 592  # 600 rows a minute, in whole micro-batches of 16
    assert plans.shard_rows(100_000, 16, 0.01) == 16
    assert plans.shard_rows(10_000_000, 16, 1e5) == 4096


@pytest.mark.parametrize("rows", [None, 7, 16, 40, 100])
def test_ranges_cover_every_key_once_and_places_do_not_depend_on_shard_size(rows):
    plan = make(keys=333, rows=rows)
    ranges = [plan.range(shard) for shard in range(plan.shards)]
    assert [i for lo, hi in ranges for i in range(lo, hi)] == list(range(333))
    assert all(lo % plan.micro_batch == 0 for lo, _ in ranges)


def test_a_plan_comes_back_as_it_was_and_damage_is_told(tmp_path):
    folder = Folder(str(tmp_path))
    plan = plans.freeze(folder, make())
    assert plans.load(folder) == plan
    folder.write("plan.json", plan.to_json()[:50])
    with pytest.raises(Exception, match="cannot be read"):
        plans.load(folder)


def test_another_fingerprint_is_refused_with_the_fields_that_differ(tmp_path):
    folder = Folder(str(tmp_path))
    plans.freeze(folder, make(fields={"config.gates": 100, "config.seed": 1}))
    assert plans.freeze(folder, make(fields={"config.gates": 100, "config.seed": 1}, batch=8)).micro_batch == 16
    with pytest.raises(UsageError) as caught:
        plans.freeze(folder, make(fields={"config.gates": 50, "config.seed": 1, "config.draft": True}))
    assert "config.gates: 100 -> 50" in str(caught.value)
    assert 'config.draft: "(absent)" -> true' in str(caught.value)
    assert "config.seed" not in str(caught.value)


def test_a_key_table_is_digested_by_content_not_by_chunks():
    whole = pa.table({"key": ["a", "b", "c"], "label": pa.array([1, 2, 3], pa.int32())})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert plans.table_digest(whole) == plans.table_digest(pieces)
    assert plans.table_digest(whole) != plans.table_digest(whole.slice(0, 2))


def test_an_estimate_by_hand():
    found = estimate(AT_10, 3600, 60, workers=2, price_per_hour=3.0)
    # 3,600 rows at 10 a second on two workers: 180 s, and 2 s to set up.
    assert found.hours == pytest.approx(182 / 3600)
    assert found.cost == pytest.approx(2 * 3.0 * 182 / 3600)
    assert found.output_bytes == 3600 * 4096
    assert found.networks == 360_000
    assert found.networks_per_s == pytest.approx(2000)
    assert estimate(AT_10, 16, 1, workers=8).workers == 1, "one shard keeps one worker busy"
