"""What a running step says to Prometheus, through Ray's metrics agent (``ray start --metrics-export-port``)."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from pipeline.tasks import Done

# name -> what it counts; each has the tag `step`. A Grafana dashboard of these is in jobs/grafana.json.
COUNTERS = {
    "raylens_rows": "rows committed, by status",
    "raylens_shards": "shards committed",
    "raylens_retries": "attempts repeated",
    "raylens_worker_deaths": "workers lost while they made a shard",
    "raylens_late_shards": "late shards given to a second worker",
    "raylens_seconds": "seconds of workers, by what they did (decode, transfer, compute, write)",
    "raylens_gpu_seconds": "seconds of GPUs that workers held",
}
GAUGES = {
    "raylens_queue": "shards waiting for a worker",
    "raylens_in_flight": "shards that workers have in hand",
    "raylens_workers": "workers that are ready",
}
_KINDS = {"raylens_rows": ("status",), "raylens_seconds": ("kind",)}


class _Counted:
    def __init__(self, name: str, step: str) -> None:
        keys = ("step", *_KINDS.get(name, ()))
        self._counter = Counter(name, description=COUNTERS[name], tag_keys=keys)
        self._counter.set_default_tags({"step": step})

    def add(self, value: float, **tags: str) -> None:
        if value > 0:
            self._counter.inc(value, tags=tags)


class Meters:
    """Counters and gauges of one step, in the driver."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._rows, self._shards = _Counted("raylens_rows", step), _Counted("raylens_shards", step)
        self._seconds, self._gpu = _Counted("raylens_seconds", step), _Counted("raylens_gpu_seconds", step)
        self.retries, self.deaths = _Counted("raylens_retries", step), _Counted("raylens_worker_deaths", step)
        self.duplicates = _Counted("raylens_late_shards", step)
        self._gauges = [Gauge(name, description=text, tag_keys=("step",)) for name, text in GAUGES.items()]

    def committed(self, done: Done) -> None:
        self._shards.add(1)
        for status, count in done.receipt.rows.items():
            self._rows.add(count, status=status)
        parts = {"decode": done.waited_s, "transfer": done.moved_s, "compute": done.computed_s, "write": done.wrote_s}
        for kind, seconds in parts.items():
            self._seconds.add(seconds, kind=kind)

    def held(self, gpu_seconds: float) -> None:
        self._gpu.add(gpu_seconds)

    def waiting(self, queue: int, in_flight: int, workers: int) -> None:
        for gauge, value in zip(self._gauges, (queue, in_flight, workers), strict=True):
            gauge.set(value, tags={"step": self._step})
