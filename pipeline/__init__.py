"""The engine: datasets, frozen plans, shards and receipts, the Ray runner, reductions, reports. It knows no method."""

import os

# Read when Ray is imported. The runner tells of every death itself, and what becomes of the shard.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")
