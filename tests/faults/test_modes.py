"""Both ways of laying work over a cluster, one CPU, and nodes that go: the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from toys import toy_job

from pipeline.engine import execute
from pipeline.options import Options, Resources

TOYS = Path(__file__).parent / "toys.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOYS.parent)}


def drive(run: Path, config: dict, resources: dict, **options) -> subprocess.Popen:
    command = [sys.executable, str(TOYS), str(run), json.dumps({"keys": 200, **config}), json.dumps(resources)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize(
    "resources",
    [
        {"cpus": 1, "mode": "inline"},
        {"cpus": 1, "gpus": 1, "mode": "spread"},
        {"cpus": 2, "gpus": 1, "gpus_per_actor": 0.5, "mode": "spread"},
    ],
    ids=["inline on one CPU", "spread on one CPU", "two actors on one GPU"],
)
def test_rows_do_not_depend_on_the_mode(tmp_path, rows_of, undisturbed, resources):
    driver = drive(tmp_path / "run", {}, {"shard_rows": 24, **resources})
    _, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert rows_of(tmp_path / "run").equals(undisturbed)


@pytest.mark.faults
def test_a_node_that_goes_takes_nothing_with_it(tmp_path, rows_of, undisturbed, monkeypatch, capfd):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(TOYS.parent))
    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        here = ray.get_runtime_context().get_node_id()
        other = next(node for node in nodes.list_all_nodes() if node.node_id != here)
        receipts = tmp_path / "run/measure/all/receipts"
        seen = []

        def remove():
            end = time.monotonic() + 90
            ready = tmp_path / f"node-{other.node_id}"
            while not (ready.exists() and list(receipts.glob("*.json"))) and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)  # by now its worker holds a shard
            seen.append(len(list(receipts.glob("*.json"))))
            nodes.remove_node(other, allow_graceful=False)

        remover = threading.Thread(target=remove)
        remover.start()
        job = toy_job(200, pause_s=1.5, markers=str(tmp_path))
        outcome = execute(job, str(tmp_path / "run"), Options(Resources(shard_rows=24)))
        remover.join()
        assert outcome.exit_code == 0
        assert rows_of(tmp_path / "run").equals(undisturbed)
        assert 1 <= seen[0] < 9
        assert "a worker was lost" in capfd.readouterr().err, "nothing ran on the node that went"
    finally:
        ray.shutdown()
        nodes.shutdown()
