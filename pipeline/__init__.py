"""The engine: datasets, frozen plans, shards and receipts, the Ray runner, reductions, reports. It knows no method."""
