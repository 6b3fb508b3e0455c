"""A run on an S3-protocol server on loopback that is no local disk, and answers badly now and then."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

moto_server = pytest.importorskip("moto.server", reason="moto's server plays the object store")
s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs")

from pictures import Means, MeansConfig, folder_source  # noqa: E402
from PIL import Image  # noqa: E402
from proxy import BadProxy  # noqa: E402
from toys import toy_job  # noqa: E402

from pipeline import steps  # noqa: E402
from pipeline.compact import compact  # noqa: E402
from pipeline.engine import execute  # noqa: E402
from pipeline.lock import RunLock  # noqa: E402
from pipeline.options import Options, Resources  # noqa: E402
from pipeline.run import Run  # noqa: E402
from pipeline.shards import Shards  # noqa: E402
from pipeline.status import status  # noqa: E402
from pipeline.storage import Folder  # noqa: E402
from pipeline.verify import verify  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try

QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)


@pytest.fixture(scope="module")
def bucket(proxy: BadProxy, credentials: dict[str, str]) -> Iterator[str]:
    """s3://runs on moto's server behind the proxy. Credentials come from the environment, as they do for a user."""
    import boto3

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")  # every listing comes in pages
        for name, value in credentials.items():
            environment.setenv(name, value)
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        proxy.upstream = server.get_host_and_port()
        s3fs.S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket="runs")
        yield "s3://runs"
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def test_of_many_writers_of_one_name_one_wins(bucket: str) -> None:
    folder = Folder(f"{bucket}/race")
    gate = threading.Barrier(8)
    won = []

    def write(i: int) -> None:
        gate.wait()
        if folder.create("receipt.json", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(won) == 1
    assert folder.read("receipt.json") == str(won[0]).encode()


def test_who_wrote_a_file_first_knows_it_though_the_answer_was_lost(bucket: str, proxy: BadProxy) -> None:
    """The request is sent again, and the store answers that there is such a file: the one of the first request."""
    folder = Folder(f"{bucket}/lost")
    proxy.fail_next("lost")
    assert folder.create("receipt.json", b"mine")
    assert not folder.create("receipt.json", b"another's")
    assert folder.read("receipt.json") == b"mine"
    proxy.fail_next("busy", "lost")
    with RunLock(folder, patience_s=1.0) as lock:  # no other driver has it
        lock.check()
    assert not folder.exists("lock.json")


def pictured(bucket: str, markers: Path) -> steps.Job:
    """A toy whose workers are killed between an object and its receipt, and a step that reads images."""
    job = toy_job(200, fault="before receipt", markers=str(markers))
    means = steps.Measure("means", Means(MeansConfig()), ("pictures",))
    sources = {**job.sources, "pictures": folder_source(f"{bucket}/pictures")}
    return steps.Job(job.name, {}, sources, (job.steps[0], means, job.steps[1]))


@pytest.mark.long
def test_a_run_over_a_store_that_fails_now_and_then_equals_a_local_one(
    bucket, proxy, cluster, tmp_path, rows_of, undisturbed, capfd
) -> None:
    store = s3fs.S3FileSystem(use_listings_cache=False)
    for i in range(20):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (10 * i, 0, 255)).save(out, "PNG")
        store.pipe(f"runs/pictures/{i:02d}.png", out.getvalue())
    url = f"{bucket}/run"
    (tmp_path / "markers").mkdir()
    with proxy.failing(busy=0.03, reset=0.02, lost=0.03, slow=0.02):
        outcome = execute(pictured(bucket, tmp_path / "markers"), url, QUIET)
        assert outcome.exit_code == 0
        assert status(url).complete
        found = verify(url)
    assert found.ok, found.problems
    assert not found.orphans
    assert sorted(path.name for path in (tmp_path / "markers").iterdir()) == [
        f"before-0000{shard}.json" for shard in (0, 4, 8)
    ], "no worker was killed: this test shows nothing"
    assert set(proxy.met) == {"busy", "reset", "lost", "slow"}, "the store did not fail: this test shows nothing"
    met = dict(proxy.met)

    # What is listed is what there is, though it comes in pages; rows are those of a local run.
    folder = Run(url).step_folder("measure", split="all")
    names = {name.rsplit("/", 1)[-1] for name in store.find("runs/run/measure/all", maxdepth=1)}
    receipts, bad = Shards(folder, 9).complete()
    assert not bad
    assert sorted(receipts) == list(range(9))
    assert names == {"plan.json", *(receipt.files[0].name for receipt in receipts.values())}
    assert rows_of(url).equals(undisturbed)
    (shards,) = (unit for unit in Run(url).step_folder("means", split="pictures").list() if unit.startswith("part-"))
    assert shards.startswith("part-00000-of-00001")
    means = next(iter(Shards(Run(url).step_folder("means", split="pictures"), 1).tables())).to_pylist()
    assert [row["mean"] for row in means] == [[10 * i, 0, 255] for i in range(20)]

    # A damaged object is named, and made again by a rerun.
    part = receipts[2].files[0].name
    folder.write(part, folder.read(part)[:-7])
    found = verify(url)
    assert not found.ok
    assert any("00002" in str(problem) for problem in found.problems)
    assert execute(pictured(bucket, tmp_path / "markers"), url, QUIET).exit_code == 0
    assert compact(url)
    assert verify(url).ok
    assert rows_of(url).equals(undisturbed)
    no_secret_in(store, os.environ["AWS_SECRET_ACCESS_KEY"], capfd.readouterr())
    print(f"faults met by the run: {met}")


def no_secret_in(store, secret, said) -> None:
    """In no object of the run, in nothing that was said, and in no log that Ray keeps of driver and workers."""
    import ray

    files = store.find("runs/run")
    assert len(files) > 30
    assert not [name for name in files if secret.encode() in store.cat_file(name)]
    assert secret not in said.out + said.err
    described = json.loads(store.cat_file("runs/run/run.json"))
    assert "test-id" not in json.dumps(described)
    logs = Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"
    written = [path for path in logs.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("worker" in path.name for path in written)
    assert not [path for path in written if secret.encode() in path.read_bytes()]
