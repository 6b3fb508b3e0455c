"""cluster.yaml is one that Ray's launcher takes, and keeps what the comments in it promise."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_it_fits_rays_own_schema(cluster: dict) -> None:
    ray = importlib.util.find_spec("ray")  # found, not imported: what Ray logs is set before its import
    assert ray is not None
    assert ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_worker": 3}, schema)


def test_the_head_runs_no_work_and_workers_are_spot_machines(cluster: dict) -> None:
    kinds = cluster["available_node_types"]
    assert cluster["head_node_type"] == "head"
    assert kinds["head"]["resources"] == {"CPU": 0}
    for kind in ("gpu_worker", "decode_worker"):
        assert kinds[kind]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kinds[kind]["min_workers"] == 0, "runs ask for what they can use"
        assert kinds[kind]["max_workers"] > 0


def test_every_node_wants_the_token_and_the_dashboard_listens_on_loopback_alone(cluster: dict) -> None:
    starts = [c for part in ("head", "worker") for c in cluster[f"{part}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    text = (ROOT / "cluster.yaml").read_text()
    assert "aws_access_key" not in text.lower(), "credentials come from the instance profile"


def test_the_environment_is_the_pinned_one(cluster: dict) -> None:
    assert any("-c ~/raylens/constraints.txt" in command for command in cluster["setup_commands"])
    assert "ray==" in (ROOT / "constraints.txt").read_text()


# Of the RayJob resource (ray.io/v1) and the cluster in it, as KubeRay's reference lists them.
JOB_FIELDS = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"}
CLUSTER_FIELDS = {"rayVersion", "enableInTreeAutoscaling", "authOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def test_the_readmes_rayjob_has_the_resources_fields_and_a_token() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (job,) = [found for found in map(yaml.safe_load, blocks) if found.get("kind") == "RayJob"]
    assert job["apiVersion"] == "ray.io/v1"
    assert set(job["spec"]) == JOB_FIELDS
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == CLUSTER_FIELDS
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text()
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert set(workers) == GROUP_FIELDS
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
        assert all(isinstance(v, str) for part in container["resources"].values() for v in part.values())
    assert "nvidia.com/gpu" in workers["template"]["spec"]["containers"][0]["resources"]["limits"]
