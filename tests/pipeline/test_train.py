"""Training in a run folder: killed, damaged, raced, under Ray; always the same result, or a refusal that says why."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import cluster
from pipeline.checkpoints import CommittedCheckpoints, DamagedError, commit, read_committed
from pipeline.errors import UsageError
from pipeline.learnt import Learnt
from pipeline.storage import Folder
from pipeline.train import Worker, train

# A whole training as a user's module has it, five batches an epoch; also run as a program, which kills itself at a
# given batch ("batch 8") or when everything of a checkpoint is written but its receipt ("receipt 3").
PROGRAM = textwrap.dedent("""
    import os, signal, sys
    import torch
    from pipeline.storage import Folder
    from pipeline.learnt import Learnt
    from pipeline.train import train
    from stages.training import TensorData, TrainingConfig, fit

    def countdown(count):
        def at():
            nonlocal count
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return at

    def learn(epochs, at_batch=lambda: None):
        def function(worker):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
            x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
            data = TensorData([str(n) for n in range(40)], x=x, y=x.prod(dim=1, keepdim=True))
            def loss(model, batch):
                if model.training:
                    at_batch()
                return ((model(batch["x"]) - batch["y"]) ** 2).mean()
            def evaluate(model):
                return {"error": float(loss(model, data.tensors))}
            def progress(step):
                worker.log(f"epoch {step.epoch}")
            config = TrainingConfig(epochs=epochs, batch=8, optimizer="adamw", lr=0.01, channels_last=False)
            history = fit(worker.wrap(net), data, config, worker.checkpoints, loss=loss, evaluate=evaluate,
                          progress=progress, rank=worker.rank, world=worker.world)
            weights = net[0].weight.detach().numpy().tobytes()
            return Learnt({"weights.bin": weights}, {"history": history, "world": worker.world})
        return function

    if __name__ == "__main__":
        what, last = sys.argv[2], countdown(int(sys.argv[3]))
        if what == "receipt":
            create = Folder.create
            def dying(folder, name, data):
                if name == "receipt.json":
                    last()
                return create(folder, name, data)
            Folder.create = dying
        function = learn(40, last) if what == "batch" else learn(40)
        train(function, Folder(sys.argv[1]), fingerprint={"epochs": 40}, threads=1, log=len)
""")


@pytest.fixture(scope="module")
def learn() -> Any:
    scope: dict[str, Any] = {"__name__": "program"}
    exec(PROGRAM, scope)
    return scope["learn"]


@pytest.fixture(scope="module")
def undisturbed(learn: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = Folder(str(tmp_path_factory.mktemp("undisturbed")))
    return train(learn(40), folder, fingerprint={"epochs": 40}, threads=1)


@pytest.mark.faults
def test_training_killed_in_mid_epoch_and_in_mid_checkpoint_ends_as_the_undisturbed_one(
    learn: Any, undisturbed: Any, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run = tmp_path / "run"
    checkpoints = CommittedCheckpoints(Folder(str(run / "checkpoints")))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def killed(what: str, at: int) -> bool:
        command = [sys.executable, str(program), str(run), what, str(at)]
        return subprocess.run(command, env=environment).returncode == -signal.SIGKILL

    assert killed("batch", 8)
    assert checkpoints.epochs() == [1]
    assert killed("receipt", 3)  # it went on with epoch 2
    assert checkpoints.epochs() == [3, 2, 1]
    assert list((run / "checkpoints/0004").iterdir()), "nothing of the fourth was written"
    lines: list[str] = []
    trained = train(learn(40), Folder(str(run)), fingerprint={"epochs": 40}, threads=1, log=lines.append)
    assert lines[0] == "going on from checkpoint 3"
    assert trained.facts["history"] == undisturbed.facts["history"]
    assert trained.digest == undisturbed.digest


def damage(place: Path, how: str) -> None:
    data = next(place.glob("state-*.safetensors"))
    if how == "truncated":
        data.write_bytes(data.read_bytes()[:-7])
    elif how == "one bit flipped":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif how == "file gone":
        data.unlink()
    elif how == "receipt garbled":
        (place / "receipt.json").write_text('{"files": {"state')


@pytest.mark.parametrize("how", ["truncated", "one bit flipped", "file gone", "receipt garbled"])
def test_damaged_checkpoint_is_refused_by_name_and_the_one_before_used(
    how: str, learn: Any, undisturbed: Any, tmp_path: Path
) -> None:
    folder = Folder(str(tmp_path))
    train(learn(40), folder, fingerprint={"epochs": 40}, threads=1)
    for file in (tmp_path / "result").iterdir():
        file.unlink()
    damage(tmp_path / "checkpoints" / "0040", how)
    lines: list[str] = []
    trained = train(learn(40), folder, fingerprint={"epochs": 40}, threads=1, log=lines.append)
    assert lines[0].startswith("checkpoint 40 refused")
    assert str(tmp_path / "checkpoints" / "0040") in lines[0]
    assert lines[1] == "going on from checkpoint 39"
    assert len([line for line in lines if "refused" in line]) == 1
    assert trained.digest == undisturbed.digest
    assert CommittedCheckpoints(folder.child("checkpoints")).latest()[0] == 40, "the damaged one was replaced"


def test_only_the_newest_three_are_kept(tmp_path: Path) -> None:
    checkpoints = CommittedCheckpoints(Folder(str(tmp_path)))
    for epoch in range(1, 7):
        checkpoints.save(epoch, {"state.json": str(epoch).encode()})
        expected = [f"{e:04d}" for e in range(max(1, epoch - 2), epoch + 1)]
        assert sorted(path.name for path in tmp_path.iterdir()) == expected
    assert checkpoints.latest() == (6, {"state.json": b"6"})


def test_receipt_names_bytes_and_hash(tmp_path: Path) -> None:
    CommittedCheckpoints(Folder(str(tmp_path))).save(7, {"state.json": b"{}"})
    entry = json.loads((tmp_path / "0007" / "receipt.json").read_text())["files"]["state.json"]
    assert entry["sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert entry["bytes"] == 2
    assert (tmp_path / "0007" / entry["file"]).read_bytes() == b"{}"


def test_files_without_a_receipt_are_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = CommittedCheckpoints(Folder(str(tmp_path)))
    checkpoints.save(1, {"state.json": b"1"})
    (tmp_path / "0002").mkdir()
    (tmp_path / "0002" / "state-00000000.json").write_bytes(b"half")
    assert checkpoints.latest() == (1, {"state.json": b"1"})
    assert checkpoints.refused == []
    checkpoints.save(2, {"state.json": b"2"})
    assert checkpoints.latest() == (2, {"state.json": b"2"})


def test_of_two_commits_the_first_stands_and_the_other_leaves_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert commit(folder, {"a.bin": b"first", "b.bin": b"same"})
    assert not commit(folder, {"a.bin": b"second", "b.bin": b"same"})
    assert read_committed(folder).files == {"a.bin": b"first", "b.bin": b"same"}
    assert len(list(tmp_path.iterdir())) == 3


def test_commit_works_on_other_storage() -> None:
    folder = Folder("memory://checkpoints-test")
    checkpoints = CommittedCheckpoints(folder)
    for epoch in range(1, 6):
        checkpoints.save(epoch, {"state.json": b"%d" % epoch})
    assert checkpoints.latest() == (5, {"state.json": b"5"})
    assert checkpoints.folder.folders() == ["0003", "0004", "0005"]


def test_finished_training_is_read_back_and_a_damaged_result_told(learn: Any, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    first = train(learn(3), folder, fingerprint={}, threads=1)
    again = train(lambda worker: pytest.fail("trained again"), folder, fingerprint={})
    assert again == first
    next((tmp_path / "result").glob("weights-*.bin")).write_bytes(b"no")
    with pytest.raises(DamagedError, match="has 2 bytes instead of"):
        train(learn(3), folder, fingerprint={})


def test_other_settings_are_refused_by_name(learn: Any, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    train(learn(2), folder, fingerprint={"lr": 0.1, "data": "abc"}, threads=1)
    with pytest.raises(UsageError, match=r"lr: 0\.1 then, 0\.2 now"):
        train(learn(2), folder, fingerprint={"lr": 0.2, "data": "abc"}, threads=1)
    with pytest.raises(UsageError, match="version: None then, 2 now") as told:
        train(learn(2), folder, fingerprint={"lr": 0.1, "data": "abc", "version": 2}, threads=1)
    assert told.value.cure == "use the version of Raylens that began it, or train into another run folder"


@pytest.mark.usefixtures("joined")
class TestUnderRay:
    def test_a_cluster_that_was_joined_without_a_setting_is_known(self, joined: Any) -> None:
        assert cluster.joined() == joined.address

    def test_one_worker_learns_what_this_process_learns(self, learn: Any, undisturbed: Any, tmp_path: Path) -> None:
        folder = Folder(str(tmp_path))
        lines: list[str] = []
        trained = train(learn(40), folder, fingerprint={"epochs": 40}, workers=1, threads=1, log=lines.append)
        said = [line for line in lines if not line.startswith("waiting for")]  # on a busy machine
        assert said == [f"epoch {n}" for n in range(1, 41)], "what a worker says is heard, in order"
        assert trained.facts["history"] == undisturbed.facts["history"]
        assert trained.digest == undisturbed.digest
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["0038", "0039", "0040"]

    def test_two_workers_average_their_gradients_and_their_error_is_told_without_a_trail_of_frames(
        self, learn: Any, undisturbed: Any, tmp_path: Path
    ) -> None:
        def fails(worker: Worker) -> Learnt:
            world = learn(40)(worker).facts["world"]
            raise ValueError(f"the moon is too bright for {world} workers")

        lines: list[str] = []
        with pytest.raises(UsageError, match="the moon is too bright for 2 workers") as told:
            train(fails, Folder(str(tmp_path)), fingerprint={}, workers=2, threads=1, log=lines.append)
        assert "Traceback" not in str(told.value)
        assert not [line for line in lines if "lost" in line], "it would only raise again"
        assert not (tmp_path / "result").exists()
        state = json.loads(CommittedCheckpoints(Folder(str(tmp_path / "checkpoints"))).latest()[1]["state.json"])
        together = [epoch["error"] for epoch in state["history"]]
        alone = [epoch["error"] for epoch in undisturbed.facts["history"]]
        assert together == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "world", "norm"),
    [
        ("cuda", 2, torch.nn.SyncBatchNorm),
        ("cuda", 1, torch.nn.BatchNorm2d),
        ("cpu", 2, torch.nn.BatchNorm2d),  # PyTorch cannot synchronise there
    ],
)
def test_batch_norm_is_over_the_batches_of_all_gpus(
    device: str, world: int, norm: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither a GPU nor other workers are needed to see what they would be given.
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, _: module)
    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", lambda module, device_ids: module)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    names = list(net.state_dict())
    worker = Worker(0, world, torch.device(device), CommittedCheckpoints(Folder(str(tmp_path))))
    wrapped = worker.wrap(net)
    assert type(wrapped[1]) is norm
    assert list(wrapped.state_dict()) == names, "what is saved does not change"


def test_threads_are_put_back(learn: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(learn(1), Folder(str(tmp_path)), fingerprint={}, threads=before + 1)
    assert torch.get_num_threads() == before
