"""The commit protocol on an S3-protocol server on loopback: it is no local-disk protocol."""

from __future__ import annotations

import threading

import pytest

moto_server = pytest.importorskip("moto.server", reason="moto's server plays the object store")
s3fs = pytest.importorskip("s3fs", reason="s3:// needs s3fs")

from toys import toy_job  # noqa: E402

from pipeline.engine import execute  # noqa: E402
from pipeline.options import Options, Resources  # noqa: E402
from pipeline.storage import Folder  # noqa: E402
from pipeline.verify import verify  # noqa: E402

QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)


@pytest.fixture(scope="module")
def bucket():
    """s3://runs on loopback. Credentials come from the environment, as they do for a user."""
    import os

    import boto3
    import ray

    ray.shutdown()  # the session of an earlier module has workers without these credentials
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "test-id",
        "AWS_SECRET_ACCESS_KEY": "secret-never-written",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="runs")
    yield "s3://runs"
    ray.shutdown()
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def test_of_many_writers_of_one_name_one_wins(bucket):
    folder = Folder(f"{bucket}/race")
    gate = threading.Barrier(8)
    won = []

    def write(i):
        gate.wait()
        if folder.create("receipt.json", str(i).encode()):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(won) == 1
    assert folder.read("receipt.json") == str(won[0]).encode()


def test_a_run_on_s3_equals_a_local_one(bucket, cluster, rows_of, undisturbed):
    """The cluster starts after the server, so that workers find it in their environment."""
    url = f"{bucket}/run"
    outcome = execute(toy_job(200), url, QUIET)
    assert outcome.exit_code == 0
    assert rows_of(url).equals(undisturbed)
    assert verify(url).ok
    folder = Folder(f"{url}/measure/all")
    part = next(name for name in folder.list() if name.startswith("part-00002"))
    folder.write(part, folder.read(part)[:-7])
    found = verify(url)
    assert not found.ok
    assert any("00002" in str(problem) for problem in found.problems)
    assert execute(toy_job(200), url, QUIET).exit_code == 0
    assert verify(url).ok
    assert rows_of(url).equals(undisturbed)


def test_no_secret_is_written(bucket, cluster):
    url = f"{bucket}/secrets"
    execute(toy_job(40), url, Options(resources=Resources(shard_rows=20), say=lambda _: None))
    store = s3fs.S3FileSystem(use_listings_cache=False)
    files = store.find("runs/secrets")
    assert len(files) > 5
    assert not [name for name in files if b"secret-never-written" in store.cat_file(name)]
