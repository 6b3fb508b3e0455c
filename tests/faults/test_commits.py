"""Racing attempts, zombies, damaged shards, changed settings: as the commit protocol promises."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
from toys import Sum, SumConfig, toy_job

from pipeline import plan as plans
from pipeline.engine import execute
from pipeline.errors import UsageError
from pipeline.estimate import Measured
from pipeline.options import Options, Resources
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.tasks import Mark, Task, Work
from pipeline.verify import verify
from pipeline.worker import Worker

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try

QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)


def worker_on(run: Run) -> Worker:
    """A worker on a toy run of 200 keys, as two drivers' actors would be."""
    job = toy_job(200)
    step = job.steps[0]
    keys = run.freeze_keys("all", job.sources["all"])
    folder = run.step_folder("measure", split="all")
    fields = plans.measure_fields(step, job.limits, {"all": keys.digest}, {})
    new = plans.new_plan("measure", "all", fields, 200, 8, Measured(1, 0, 0, 0, 0, "cpu", 1), 24)
    plan = plans.freeze(folder, new)
    return Worker(Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, job.limits), "cpu", 1)


def test_two_attempts_of_a_shard_race_and_one_wins(tmp_path):
    run = Run(str(tmp_path))
    workers = [worker_on(run) for _ in range(2)]
    gate = threading.Barrier(2)
    done = {}

    def attempt(i):
        def at_the_end(mark: Mark) -> None:
            if not mark.begin and mark.range[1] == 24:
                gate.wait()

        done[i] = workers[i].run(Task("all", 0, attempt=i + 1), at_the_end)

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(d.won for d in done.values()) == [False, True]
    assert done[0].receipt == done[1].receipt
    assert len(list((tmp_path / "measure/all").glob("part-*"))) == 1


def test_a_zombie_that_commits_late_changes_nothing(tmp_path):
    run = Run(str(tmp_path))
    zombie, successor = worker_on(run), worker_on(run)
    # The zombie's rows differ (it runs older code, say): they must not replace what was committed meanwhile.
    zombie.stage.config = dataclasses.replace(zombie.stage.config, seed=7)
    first = successor.run(Task("all", 3, attempt=2))
    late = zombie.run(Task("all", 3, attempt=1))
    assert first.won
    assert not late.won
    assert late.receipt == first.receipt
    parts = list((tmp_path / "measure/all").glob("part-00003-*"))
    assert [p.name for p in parts] == [first.receipt.files[0].name]


def test_rows_do_not_depend_on_the_size_or_order_of_shards(cluster, tmp_path, rows_of, undisturbed):
    options = Options(resources=Resources(shard_rows=40, cpus_per_actor=1), say=lambda _: None)
    execute(toy_job(200), str(tmp_path / "run"), options)
    assert rows_of(tmp_path / "run").equals(undisturbed)


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "delete receipt"])
def test_a_damaged_shard_is_named_and_only_it_is_made_again(cluster, tmp_path, rows_of, undisturbed, damage):
    run = tmp_path / "run"
    execute(toy_job(200), str(run), QUIET)
    assert verify(str(run)).ok
    part = next((run / "measure/all").glob("part-00002-*"))
    data = part.read_bytes()
    if damage == "delete":
        part.unlink()
    elif damage == "truncate":
        part.write_bytes(data[:-10])
    elif damage == "flip":
        part.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    else:
        (run / "measure/all/receipts/00002.json").unlink()
    found = verify(str(run))
    assert not found.ok
    named = [*map(str, found.problems), *found.missing]
    assert any("00002" in text or "shard 2 " in text for text in named), named
    if damage == "flip":  # a rerun looks at presence and size; verify reads the bytes
        verify(str(run), repair=True)
    others = {p: p.stat().st_mtime_ns for p in (run / "measure/all").glob("part-*") if "part-00002" not in p.name}
    sums = {p: p.stat().st_mtime_ns for p in run.glob("sum/*/part-*")}
    assert execute(toy_job(200), str(run), QUIET).exit_code == 0
    assert verify(str(run)).ok
    assert rows_of(run).equals(undisturbed)
    assert {p: p.stat().st_mtime_ns for p in others} == others
    assert {p: p.stat().st_mtime_ns for p in run.glob("sum/*/part-*")} == sums, "the same rows need no new reduction"


def test_changed_settings_of_a_measuring_step_are_refused_with_a_diff(cluster, tmp_path):
    run = str(tmp_path / "run")
    execute(toy_job(200), run, QUIET)
    told = Run(run).describe()
    with pytest.raises(UsageError) as caught:
        execute(dataclasses.replace(toy_job(200, seed=5), config={"seed": 5}), run, QUIET)
    assert Run(run).describe() == told, "what was refused is not what made these rows"
    assert "config.seed: 0 -> 5" in str(caught.value)
    assert "--run" in str(caught.value)
    with pytest.raises(UsageError, match="keys: 200 -> 210"):
        execute(toy_job(210), run, QUIET)
    assert execute(toy_job(200, pause_s=0.01), run, QUIET).exit_code == 0, (
        "what changes no row is not in the fingerprint"
    )


def test_twenty_settings_of_a_reduction_stand_side_by_side(cluster, tmp_path):
    run = tmp_path / "run"
    factors = [1 + i / 4 for i in range(20)]
    marks = [execute(toy_job(200, factor=f), str(run), QUIET).fingerprints["sum"][:8] for f in factors]
    assert len(set(marks)) == 20
    one = json.loads((run / "sum" / marks[0] / "metrics.json").read_text())["total"]
    for factor, mark in zip(factors, marks, strict=True):
        total = json.loads((run / "sum" / mark / "metrics.json").read_text())["total"]
        assert total == pytest.approx(one * factor)
        assert json.loads((run / "sum" / mark / "label.json").read_text())["label"] == f"x{factor:g}"


def test_a_reduction_sums_in_a_fixed_tree(tmp_path, monkeypatch, rows_of):
    """float32 sums depend on their order; the engine's depends on the plan only, here against a sum by hand."""
    import numpy as np

    from pipeline import reduce
    from pipeline.reduce import Part, Reducing, reduce_here

    monkeypatch.setattr(reduce, "LEAF_SHARDS", 32)
    run = Run(str(tmp_path))
    job = toy_job(2000)
    step = job.steps[0]
    keys = run.freeze_keys("all", job.sources["all"])
    folder = run.step_folder("measure", split="all")
    fields = plans.measure_fields(step, job.limits, {"all": keys.digest}, {})
    new = plans.new_plan("measure", "all", fields, 2000, 8, Measured(1, 0, 0, 0, 0, "cpu", 1), 16)
    plan = plans.freeze(folder, new)
    worker = Worker(Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, job.limits), "cpu", 1)
    for shard in reversed(range(plan.shards)):
        worker.run(Task("all", shard))
    shards = Shards(folder, plan.shards)
    parts = tuple(Part(folder.url, "all", r) for _, r in sorted(shards.committed().items()))
    assert len(parts) == 125
    target = run.step_folder("sum", fingerprint="0" * 8)
    reduce_here(Reducing("sum", Sum(SumConfig()), target.url, parts), [0, 1])
    got = Shards(target, 2).table(0).column("total")[0].as_py()
    leaves = []
    for i in range(0, 125, 32):
        total = np.float32(0)
        for part in parts[i : i + 32]:
            for value in shards.open(part.receipt).column("number").to_pylist():
                if value % 2 == 0:
                    total = np.float32(total + np.float32(value / 7))
        leaves.append(total)
    assert got == float((leaves[0] + leaves[1]) + (leaves[2] + leaves[3]))


def test_an_output_that_cannot_be_written_is_one_clear_line(cluster, tmp_path):
    from pipeline.errors import RaylensError

    (tmp_path / "file").write_text("here I lie")
    with pytest.raises(RaylensError) as caught:
        execute(toy_job(200), str(tmp_path / "file" / "run"), QUIET)
    assert "file" in str(caught.value)
    assert "not a folder" in str(caught.value)
