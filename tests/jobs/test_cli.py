"""The command line as a user meets it: real processes, their output and their exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from jobs import cli
from pipeline import plan as plans
from pipeline.errors import UsageError
from pipeline.estimate import Measured
from pipeline.options import Options
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import Job, Source
from pipeline.storage import Folder

ROOT = Path(__file__).resolve().parents[2]


def raylens(*argv: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *argv],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "100", **environment},
        timeout=120,
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished sweep of 20 keys, one of them failed."""
    made = Run(str(tmp_path / "run"))
    keys = [f"{i:02d}.jpg" for i in range(20)]
    made.freeze_keys("fit", Source({}, lambda: pa.table({"key": keys})))
    fields = {"version": 1}
    plan = plans.Plan("sweep", "fit", plans.fingerprint(fields), fields, 20, 10, 4, Measured(1, 1, 1, 1, 1, "cpu", 1))
    folder = made.step_folder("sweep", split="fit")
    plans.freeze(folder, plan)
    for shard in range(2):
        names = keys[shard * 10 : shard * 10 + 10]
        status = ["failed" if name == "03.jpg" else "ok" for name in names]
        error = ["cannot be decoded" if name == "03.jpg" else None for name in names]
        Shards(folder, 2).commit(shard, pa.table({"key": names, "status": status, "error": error}))
    steps = [{"name": "sweep", "kind": "measure", "upstream": [], "splits": ["fit"], "keyed": False}]
    described = {"job": "chip", "config": {}, "provenance": {}, "steps": steps}
    made.folder.write("run.json", json.dumps(described).encode())
    return made


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    done = raylens("--help")
    assert done.returncode == 0
    for command in ("chip", "plan", "status", "verify", "report", "answer", "demo", "version"):
        assert f"\n  {command} " in done.stdout
    code = "import sys, jobs.cli; print(sorted({'torch', 'ray', 'pyarrow', 'pydantic', 'numpy'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout == "[]\n"


def test_help_of_a_job_names_its_flags() -> None:
    text = raylens("chip", "--help").stdout
    for flag in (
        "CONFIG",
        "--run",
        "--set",
        "--address",
        "--only",
        "--allow-failed",
        "--retry-failed",
        "--mode",
        "--label",
    ):
        assert flag in text


def test_version_names_what_results_depend_on() -> None:
    done = raylens("version")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("raylens", "python", "torch", "ray"))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["chp"], "Did you mean 'chip'?"),
        (["status", "--jsn", "x"], "--json"),
        (["status"], "RUN"),
        (["verify", "x", "--repare"], "--repair"),
        (["plan", "chop", "x.yaml"], "did you mean 'chip'?"),
        (["chip", "x.yaml", "--allow-failed", "2"], "--allow-failed"),
    ],
)
def test_wrong_usage_exits_2_with_a_near_match(argv: list[str], told: str) -> None:
    done = raylens(*argv)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_wrong_config_exits_2_and_names_field_value_and_nearest_name(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("sed: 3\n")
    done = raylens("chip", str(config), "--set", "sweep.gatse=7", "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "unknown field sed = 3; did you mean 'seed'?" in done.stderr
    assert "unknown field sweep.gatse = 7; did you mean 'gates'? (from --set sweep.gatse=7)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_plan_refuses_other_settings_of_a_training_before_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("this training was begun with other settings")

    job = SimpleNamespace(build=lambda _: Job("toy", {}, {}, ()))
    settings = SimpleNamespace(run="memory://toy", options=lambda **_: Options())
    monkeypatch.setattr(cli, "load", lambda *_: (job, settings))
    monkeypatch.setattr("pipeline.preview.preview_trainings", refuse)
    monkeypatch.setattr("pipeline.preview.preview", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(UsageError, match="other settings"):
        cli.plan("toy", "toy.yaml")


def test_folder_that_is_no_run_is_one_message_and_status_2(tmp_path: Path) -> None:
    for command in ("status", "verify", "report"):
        done = raylens(command, str(tmp_path))
        assert done.returncode == 2
        assert done.stderr.splitlines() == [
            f"raylens: {tmp_path}: is not a run folder (it has no run.json)",
            "  -> check the path",
        ]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = raylens("status", str(tmp_path), RAYLENS_DEBUG="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "is not a run folder" in done.stderr


def test_status_tells_rows_and_failed_keys(run: Run) -> None:
    done = raylens("status", run.url)
    assert done.returncode == 0
    assert "complete" in done.stdout
    assert "03.jpg: cannot be decoded" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("sweep/fit"))
    assert line.split()[2:6] == ["2/2", "19", "0", "1"]
    told = json.loads(raylens("status", run.url, "--json").stdout)
    assert told["complete"] is True
    assert told["steps"][0]["rows"] == {"ok": 19, "filtered": 0, "failed": 1}


def test_what_dies_after_a_commands_end_does_not_change_its_exit_status() -> None:
    """Threads of libraries may abort a process that is torn down; exit handlers still run."""
    program = "; ".join(
        [
            "import atexit, os, sys",
            "atexit.register(lambda: print('handled'))",
            "sys.last = type('Last', (), {'__del__': lambda self: os.abort()})()",
            "from jobs.cli import main",
            "main(sys.argv[1:])",
        ]
    )
    for words, status in ((["version"], 0), (["no-such-command"], 2), (["status", "/nowhere"], 2)):
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, "handled" in done.stdout.splitlines()) == (status, True), done.stderr


def test_a_watched_run_is_shown_until_it_is_complete(run: Run) -> None:
    receipts = Path(run.url) / "sweep/fit/receipts"
    kept = (receipts / "00001.json").read_bytes()
    (receipts / "00001.json").unlink()
    command = [sys.executable, "-m", "jobs.cli", "status", run.url, "--watch"]
    watching = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert watching.stdout is not None
    assert "not complete" in watching.stdout.readline()
    Folder(str(receipts)).write("00001.json", kept)  # whole at once, as they come
    shown, _ = watching.communicate(timeout=240)
    assert watching.returncode == 0
    last = [line for line in shown.splitlines() if line.startswith(run.url)][-1]
    assert last.endswith("job chip  complete")


def test_verify_exits_1_on_damage_names_it_and_repairs_on_request(run: Run) -> None:
    assert raylens("verify", run.url).returncode == 0
    file = next((Path(run.url) / "sweep" / "fit").glob("part-00001-*"))
    file.write_bytes(file.read_bytes()[:-1])
    done = raylens("verify", run.url)
    assert done.returncode == 1
    assert "sweep/fit shard 1" in done.stdout
    assert file.name in done.stdout
    told = json.loads(raylens("verify", run.url, "--json").stdout)
    assert (told["ok"], len(told["problems"])) == (False, 1)
    repaired = raylens("verify", run.url, "--repair")
    assert repaired.returncode == 0
    assert "withdrawn" in repaired.stdout
    after = raylens("verify", run.url)
    assert after.returncode == 1
    assert "sweep/fit shard 1 is not committed" in after.stdout
    assert "not complete" in raylens("status", run.url).stdout


def test_report_of_a_job_that_has_none_is_told(run: Run) -> None:
    described = run.describe()
    run.folder.write("run.json", json.dumps({**described, "job": "mystery"}).encode())
    done = raylens("report", run.url)
    assert done.returncode == 2
    assert "'mystery' has no report" in done.stderr


def test_closed_pipe_is_no_error(run: Run) -> None:
    command = f"{sys.executable} -m jobs.cli status {run.url} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Traceback" not in done.stderr


def test_interrupt_is_told_with_how_to_go_on(tmp_path: Path) -> None:
    """A named pipe as config: the command waits for it until it is interrupted."""
    pipe = tmp_path / "c.yaml"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "chip", str(pipe), "--run", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        with open(pipe, "w"):  # returns when the command has opened its end, so it is in its body now
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped; run the same command again to resume" in told.splitlines()
    assert "Traceback" not in told
