"""How long it takes to know what a run of very many shards has: 100,000 receipts in a folder, 5,000 on an S3 server.

    python tests/bench/listing.py [--local N] [--s3 N]

What `status` and a rerun ask first: which shards are complete. Once by reading each receipt, once by the file that
stands for all of them (`pipeline/receipts.py`), which the same listing checks. The S3 server is moto's, on loopback, in
a process of its own: its time for one request is what is measured there, so more the count of requests than the
seconds say what another server would take. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.shards import DataFile, Receipt, Shards
from pipeline.storage import Folder


def receipts(count: int) -> dict[int, Receipt]:
    name = "part-{0:05d}-of-{1:05d}-0a1b2c3d.parquet"
    rows = {"ok": 1000, "filtered": 0, "failed": 0}
    return {
        i: Receipt(i, (DataFile(name.format(i, count), 1, f"{i:064x}"),), rows, 61.3, 1, "cuda:0") for i in range(count)
    }


def fill(folder: Folder, known: dict[int, Receipt]) -> None:
    """Data files of one byte and receipts, without the care of a commit."""

    def put(item: tuple[int, Receipt]) -> None:
        shard, receipt = item
        for name, data in ((receipt.files[0].name, b"x"), (f"receipts/{shard:05d}.json", receipt.to_json())):
            if folder.local:
                with open(f"{folder.root}/{name}", "wb") as file:
                    file.write(data)
            else:
                folder.fs.pipe_file(f"{folder.root}/{name}", data)

    if folder.local:
        os.makedirs(f"{folder.root}/receipts")
    with ThreadPoolExecutor(1 if folder.local else 8) as pool:
        list(pool.map(put, known.items()))


def timed(kind: str, url: str, count: int) -> dict[str, Any]:
    folder, known = Folder(url), receipts(count)
    began = time.perf_counter()
    fill(folder, known)
    shards, found = Shards(folder, count), {}
    print(f"{kind}: {count:,} receipts written in {time.perf_counter() - began:.1f} s", flush=True)
    for way in ("each", "one"):
        if way == "one":
            shards.summarize(len(known))
        began = time.perf_counter()
        good, bad = shards.complete()
        found[f"{kind}_{way}_s"] = time.perf_counter() - began
        assert good == known
        assert not bad
        print(f"{kind}, {way}: {found[f'{kind}_{way}_s']:.2f} s", flush=True)
    return {f"{kind}_receipts": count, **found}


def on_s3(count: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        import s3fs

        s3fs.S3FileSystem().mkdir("runs")
        return timed("s3", "s3://runs/step", count)
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", type=int, default=100_000)
    parser.add_argument("--s3", type=int, default=5_000)
    args = parser.parse_args()
    result: dict[str, Any] = {"bench": "listing", "load_average": os.getloadavg()[0]}
    if args.local:
        with tempfile.TemporaryDirectory(prefix="raylens-bench-") as folder:
            result |= timed("local", f"{folder}/step", args.local)
    if args.s3:
        result |= on_s3(args.s3)
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
