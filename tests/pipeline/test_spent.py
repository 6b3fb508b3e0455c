"""What a step says of its time, by hand."""

from __future__ import annotations

from pipeline.shards import Receipt
from pipeline.spent import Spent
from pipeline.tasks import Done


def done(waited: float, computed: float, wrote: float, **rows: int) -> Done:
    return Done(Receipt(0, (), rows), True, waited, computed, wrote)


def test_shares_hours_price_and_the_slowest() -> None:
    spent = Spent("sweep")
    assert spent.lines(2.0) == []
    for i, seconds in enumerate((300.0, 600.0, 900.0, 1080.0)):
        spent.add(f"val/{i:05d}", done(seconds * 0.2, seconds * 0.75, seconds * 0.05, ok=9, failed=1))
    spent.hold(workers=2, gpus=1.0, seconds=1800.0)
    spent.retries = 2
    assert (spent.rows, spent.failed, spent.shards) == (40, 4, 4)
    assert spent.lines(2.0) == [
        "time went to decode 20 %, compute 75 %, write 5 %; "
        "1 h 00 min of workers, 80 % of it in committed shards, 0.50 GPU hours, 2.00 at 2 an hour",
        "slowest shards val/00003 18 min 00 s, val/00002 15 min 00 s, val/00001 10 min 00 s",
        "2 attempts repeated, 0 late shards given to a second worker",
    ]
    assert "an hour" not in spent.lines(None)[0]
    assert spent.to_dict(2.0) == {
        "seconds": {"decode": 576.0, "compute": 2160.0, "write": 144.0},
        "worker_hours": 1.0,
        "gpu_hours": 0.5,
        "cost": 2.0,
        "slowest": {"val/00003": 1080.0, "val/00002": 900.0, "val/00001": 600.0},
        "retries": 2,
        "duplicates": 0,
    }


def test_rows_decoded_elsewhere_have_a_way_to_come() -> None:
    spent = Spent("sweep")
    spent.add("val/00000", Done(Receipt(0, (), {"ok": 1}), True, 1.0, 6.0, 1.0, moved_s=2.0))
    assert spent.lines(None)[0].startswith("time went to decode 10 %, transfer 20 %, compute 60 %, write 10 %; ")
    assert spent.slowest == [(10.0, "val/00000")]
