"""Jobs submitted to a head that wants a token: run, joined, left, stopped, resumed; and what is refused."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from jobs import submit
from jobs.chip import ChipConfig
from jobs.cli import app
from jobs.config import check
from pipeline.errors import RaylensError, UsageError
from pipeline.options import Resources
from pipeline.status import status
from pipeline.submission import JobServer, environment_file

pytestmark = pytest.mark.timeout(1800)  # starts Ray, which a busy machine may do only at the third try

ROOT = Path(__file__).resolve().parents[2]
BOXES = {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0, "segmentation": [[1, 2, 4, 2, 4, 6]]}


@pytest.fixture(scope="module")
def coco_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that needs no network: twelve images with a dog each."""
    folder = tmp_path_factory.mktemp("config")
    content = {
        "categories": [{"id": 1, "name": "dog", "supercategory": "animal"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(12)],
        "annotations": [{"id": i + 1, "image_id": i, "category_id": 1, **BOXES} for i in range(12)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    for image in content["images"]:
        Image.new("RGB", (9, 9)).save(folder / image["file_name"])
    split = {"annotations": "${ANNOTATIONS}", "images": "."}
    (folder / "coco.yaml").write_text(yaml.safe_dump({"splits": {"all": split}}))
    (folder / "job.env").write_text(f"# where the data lies there\nANNOTATIONS={folder / 'instances.json'}\n")
    return folder / "coco.yaml"


def raylens(head, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *map(str, words), "--address", head.address]
    environment = {**head.environment, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_job_runs_there_and_again_it_is_resumed(head, coco_config: Path, tmp_path: Path) -> None:
    asked = ("submit", "coco", coco_config, "--run", tmp_path / "run", "--env-file", coco_config.with_name("job.env"))
    first = raylens(head, *asked, "--name", "dogs")
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.startswith("dogs-")
    assert f"run folder {tmp_path / 'run'}" in first.stdout
    assert "paths, which every node must have" in first.stderr
    assert f"{tmp_path / 'run'}, {coco_config.parent}" in first.stderr
    assert status(str(tmp_path / "run")).complete
    receipts = sorted((tmp_path / "run/filter/all/receipts").iterdir())
    before = [file.stat().st_mtime_ns for file in receipts]
    assert raylens(head, *asked).returncode == 0
    assert [file.stat().st_mtime_ns for file in receipts] == before, "a finished run is not made again"
    listed = raylens(head, "jobs").stdout.splitlines()
    assert [line.split()[1] for line in listed[1:]] == ["succeeded"] * 2
    ended = first.stdout.split()[0]
    assert raylens(head, "stop", ended).stdout == f"{ended} was over already\n"


def test_prometheus_reads_what_a_job_did(head, coco_config: Path, tmp_path: Path) -> None:
    """The job waits, as a scrape comes every few seconds and the numbers go with the process that has them."""
    program = "; ".join(
        [
            "import os, sys, time",
            "from jobs import coco",
            "from jobs.config import load_config",
            f"os.environ['ANNOTATIONS'] = {str(coco_config.with_name('instances.json'))!r}",
            f"coco.run(load_config(coco.CocoConfig, {str(coco_config)!r}), {str(tmp_path / 'run')!r})",
            "print('done', flush=True)",
            "time.sleep(600)",
        ]
    )
    submitted = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "RAY_ADDRESS": head.gcs}  # "auto" alone joins any Ray here
    environment = {**head.environment, **submitted, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        assert any(line == "done\n" for line in job.stdout)
        end = time.monotonic() + 120
        while "ray_raylens_seconds_total" not in (scraped := _scraped(head)) or _rows(scraped) != {(True, 12.0)}:
            assert time.monotonic() < end, scraped[:5000]
            time.sleep(0.2)
    finally:
        job.kill()
        job.communicate()
    assert "ray_raylens_shards_total" in scraped


def _scraped(head) -> str:
    with contextlib.suppress(OSError):  # it is asked again
        return urllib.request.urlopen(head.metrics, timeout=30).read().decode()
    return ""


def _rows(scraped: str) -> set[tuple[bool, float]]:
    """(whether of the filter, its rows that are ok) of this job and of others before it, each with its own process."""
    rows = [
        line for line in scraped.splitlines() if line.startswith("ray_raylens_rows_total") and 'status="ok"' in line
    ]
    return {('step="filter"' in line, float(line.split()[-1])) for line in rows}


def test_the_exit_status_of_a_job_that_fails_is_its_commands(head, coco_config: Path, tmp_path: Path) -> None:
    lost = raylens(head, "submit", "coco", coco_config, "--run", tmp_path, ANNOTATIONS=str(tmp_path / "absent.json"))
    assert lost.returncode == 2
    assert "absent.json" in lost.stdout
    assert "Traceback" not in lost.stdout + lost.stderr


def test_without_the_token_or_with_another_one_line_says_so(head) -> None:
    without = raylens(head, "jobs", RAY_AUTH_TOKEN="", HOME="/nowhere")
    assert without.returncode == 1
    assert "the cluster wants a token, and none was found" in without.stderr
    other = raylens(head, "jobs", RAY_AUTH_TOKEN="another")
    assert "the cluster wants a token, and refuses this one" in other.stderr
    assert "Traceback" not in without.stderr + other.stderr


def test_an_interruption_leaves_the_job_running_and_a_second_submission_joins_it(
    head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.environment["RAY_AUTH_TOKEN"])
    server = JobServer(head.address)
    program = "import time, pipeline; print('of', pipeline.__file__); print('begun', flush=True); time.sleep(600)"
    waits, tree = [sys.executable, "-c", program], submit._modules("tree")
    job = server.submit(waits, str(tmp_path), name="waits", config="c", files=tmp_path, modules=tree, env={})
    again = server.submit(waits, str(tmp_path), name="waits", config="d", files=tmp_path, modules=[], env={})
    assert (again.id, again.config) == (job.id, "c")
    program = f"from jobs.submit import follow; raise SystemExit(follow({head.address!r}, {job.id!r}))"
    following = subprocess.Popen(
        [sys.executable, "-c", program],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert following.stdout is not None
    said: list[str] = []
    while (line := following.stdout.readline()) != "begun\n":
        assert line, following.communicate()[1]
        said.append(line)
    (place,) = [line.split()[1] for line in said if line.startswith("of ")]
    assert "/py_modules_files/" in place, "another Raylens than the one that was uploaded"
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=240)
    assert following.returncode == 130
    assert f"{job.id} goes on" in err
    assert server.job(job.id).status == "RUNNING"
    assert server.stop(job.id)
    end = time.monotonic() + 180
    while not server.job(job.id).over:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.job(job.id).status == "STOPPED"
    with pytest.raises(UsageError, match="there is no job 'nobody'"):
        server.job("nobody")


@pytest.mark.long
def test_a_job_that_is_stopped_finishes_its_slice_and_submitted_again_it_goes_on(
    head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.environment["RAY_AUTH_TOKEN"])
    server, run = JobServer(head.address), tmp_path / "run"

    def submitted(pause_s: float) -> str:
        toy = ["toys.py", str(run), json.dumps({"keys": 200, "pause_s": pause_s}), '{"shard_rows": 24}']
        files, tree = ROOT / "tests/faults", submit._modules("tree")
        return server.submit(
            [sys.executable, *toy], str(run), name="toy", config="", files=files, modules=tree, env={}
        ).id

    def ended(id: str, status: str) -> None:
        end = time.monotonic() + 600
        while not (job := server.job(id)).over:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert job.status == status, job.message

    def receipts() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in run.glob("measure/all/receipts/*.json")}

    for _ in range(4):  # a driver gives up where a machine is too busy to let it join its Ray
        first = submitted(3.0)
        while not receipts() and not (job := server.job(first)).over:
            time.sleep(0.1)
        if receipts():
            break
    else:
        raise AssertionError(job.message)
    assert raylens(head, "stop", first).stdout == f"{first} is being stopped\n"
    ended(first, "STOPPED")
    before = receipts()
    assert 1 <= len(before) < 9
    assert not (run / "lock.json").exists(), "it did not leave in good order"
    ended(submitted(0.0), "SUCCEEDED")
    after = receipts()
    assert len(after) == 9
    assert {name: after[name] for name in before} == before, "committed shards were made again"


def test_rays_own_command_submits_a_job_too(head, coco_config: Path, tmp_path: Path) -> None:
    environment = {"env_vars": {"ANNOTATIONS": str(coco_config.with_name("instances.json"))}}
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", head.address]
    command += ["--runtime-env-json", json.dumps(environment), "--"]
    command += ["raylens", "coco", str(coco_config), "--run", str(tmp_path / "run")]
    told = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=600, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"run folder {tmp_path / 'run'}" in told.stdout
    assert status(str(tmp_path / "run")).complete


class Tails:
    """A client whose first connection breaks in the middle, and whose second tells everything again."""

    def __init__(self) -> None:
        self.connections = 0

    async def tail_job_logs(self, id: str):
        self.connections += 1
        yield "one\ntw"
        if self.connections == 1:
            raise RuntimeError("WebSocket connection closed unexpectedly")
        yield "o\nthree\n"

    def get_job_info(self, id: str) -> SimpleNamespace:
        told = {"status": "SUCCEEDED" if self.connections > 1 else "RUNNING", "entrypoint": "x", "message": ""}
        times = {"start_time": 1000, "end_time": None, "metadata": {"run": "r"}}
        return SimpleNamespace(submission_id=id, job_id=None, driver_exit_code=0, **told, **times)


def test_a_broken_connection_shows_nothing_twice_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.submission._RETRY_S", 0.0)
    server = JobServer.__new__(JobServer)
    server.address, server._client = "http://127.0.0.1:1", Tails()
    shown: list[str] = []
    assert server.follow("job", shown.append).status == "SUCCEEDED"
    assert "".join(shown) == "one\ntwo\nthree\n"


class Refuses:
    """A client whose every answer is one that fails."""

    def __init__(self, said: str) -> None:
        self.said = said

    def get_job_info(self, id: str) -> None:
        raise RuntimeError(self.said)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("Request failed with status code 404: chip-40 is not there", UsageError, "there is no job 'chip-40404'"),
        ("Request failed with status code 500: chip-40404 cannot be asked", RaylensError, "the job server refuses"),
    ],
)
def test_a_job_is_missing_where_the_server_says_so_whatever_its_id(
    said: str, kind: type[RaylensError], told: str
) -> None:
    server = JobServer.__new__(JobServer)
    server.address, server._client = "http://127.0.0.1:1", Refuses(said)
    with pytest.raises(RaylensError, match=told) as caught:
        server.job("chip-40404")
    assert type(caught.value) is kind


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses for which Ray's client was made; it connects to nothing."""
    made: list[str] = []
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda address, headers: made.append(address))
    return made


@pytest.fixture(params=["secret", ""], ids=["with a token", "without"])
def token(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_AUTH_TOKEN", request.param)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    return request.param


@pytest.mark.parametrize("address", ["http://10.0.0.7:8265", "http://head.example.org:8265"])
def test_a_token_does_not_go_over_plain_http_to_another_machine(address: str, token: str, clients: list[str]) -> None:
    if token:
        with pytest.raises(UsageError, match="plain http") as caught:
            JobServer(address)
        assert "--insecure" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert clients == []
        JobServer(address, insecure=True)
    else:
        JobServer(address)
    assert clients == [address]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:1", "http://[::1]:1", "https://a.org"])
def test_a_tunnel_and_https_are_fine(address: str, token: str, clients: list[str]) -> None:
    JobServer(address)
    assert clients == [address]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "ray://head:10001", "auto", "this://x", "http://", "http://[::1", "http://h:port"]
)
@pytest.mark.parametrize("insecure", [False, True])
def test_what_is_no_job_server_is_refused(address: str, insecure: bool, token: str, clients: list[str]) -> None:
    with pytest.raises(UsageError, match="no address of a job server"):
        JobServer(address, insecure=insecure)
    assert clients == []


PASSWORD = "s3cr3t-never-sent"


@pytest.mark.parametrize("place", ["run", "weights"])
def test_addresses_with_passwords_go_nowhere(tmp_path: Path, clients: list[str], place: str) -> None:
    url = f"s3://key:{PASSWORD}@bucket/x"
    model = {"name": "resnet18", "weights": f"{url}.pth" if place == "weights" else "DEFAULT"}
    values = {"model": model, "data": {"fit": {"kind": "folder", "root": str(tmp_path)}}}
    settings = check(ChipConfig, values, where="test")
    with pytest.raises(UsageError, match="has a password in it") as caught:
        submit.submit(submit.Submission("chip", settings, url if place == "run" else str(tmp_path)))
    assert PASSWORD not in str(caught.value)
    assert clients == []


def test_steps_and_labels_are_submitted_as_they_are_run(
    coco_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[submit.Submission] = []

    def submitted(what: submit.Submission) -> tuple[SimpleNamespace, list[str]]:
        asked.append(what)
        return SimpleNamespace(id="coco-1", status="PENDING"), []

    monkeypatch.setattr(submit, "submit", submitted)
    monkeypatch.setenv("ANNOTATIONS", str(tmp_path))
    words = ["submit", "coco", str(coco_config), "--run", str(tmp_path), "--no-follow", "--yes"]
    told = CliRunner().invoke(app, [*words, "--only", "filter", "--only", "kept", "--label", "a=b, again"])
    assert (told.exit_code, told.stdout) == (0, "coco-1 pending\n"), told.output
    assert asked[0].flags == ("--only", "filter", "--only", "kept", "--yes")
    assert asked[0].settings.label == "a=b, again"


def test_a_file_of_variables(tmp_path: Path) -> None:
    file = tmp_path / "job.env"
    file.write_text("# comment\n\nexport A=1\nB='two words'\nC=\"x=y\"\n")
    assert environment_file(file) == {"A": "1", "B": "two words", "C": "x=y"}
    file.write_text("A=1\nnot a setting\n")
    with pytest.raises(UsageError, match=r"job\.env, line 2"):
        environment_file(file)
    with pytest.raises(UsageError, match="cannot be read"):
        environment_file(tmp_path / "absent")


def test_a_users_own_network_goes_along(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def network(): ...\n")
    values = {
        "model": {"name": "mine:network", "seed": 1, "num_classes": 3},
        "data": {name: {"kind": "folder", "root": str(tmp_path)} for name in ("fit", "eval")},
    }
    settings = check(ChipConfig, values, where="test")
    with submit._files(settings, [str(tmp_path)]) as folder:
        assert sorted(f.name for f in folder.iterdir()) == ["config.yaml", "mine.py"]
        assert check(ChipConfig, yaml.safe_load((folder / "config.yaml").read_text()), where="there") == settings


def test_the_driver_of_a_submitted_job_joins_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert Resources().cluster is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert Resources().cluster == "auto"
    assert Resources(address="ray://x").cluster == "ray://x"
