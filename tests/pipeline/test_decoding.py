"""When decoding leaves the machine of the GPU: where that is what a worker waits for, and there are CPUs elsewhere."""

from __future__ import annotations

import pytest

from pipeline.decoding import spreads
from pipeline.estimate import Measured

GPU, HEAD, DECODER = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 0.0}, {"CPU": 16.0}


def measured(decode_ms: float, compute_ms: float) -> Measured:
    return Measured(1.0, decode_ms / 1e3, compute_ms / 1e3, 1.0, 1.0, "cuda", 8)


FAST, SLOW = measured(40, 2), measured(8, 2)  # on 8 threads: 5 ms and 1 ms a row


@pytest.mark.parametrize(
    ("asked", "runs", "nodes", "scales", "wanted", "why"),
    [
        ("auto", [FAST], [HEAD, GPU, DECODER], False, True, "5 ms to decode on 8 threads, 2 ms to compute"),
        ("auto", [SLOW], [HEAD, GPU, DECODER], False, False, "1 ms to decode on 8 threads, 2 ms to compute"),
        ("auto", [SLOW, FAST], [GPU, DECODER], False, True, "5 ms"),
        ("auto", [FAST], [HEAD, GPU, GPU], False, False, "every CPU is beside a GPU"),
        ("auto", [FAST], [HEAD, GPU, GPU], True, True, "5 ms"),
        ("auto", [], [GPU, DECODER], False, False, "nothing is measured yet"),
        ("auto", [FAST], [DECODER, DECODER], False, False, "no node has a GPU"),
        ("spread", [SLOW], [GPU], False, True, "resources.mode is spread"),
        ("inline", [FAST], [GPU, DECODER], False, False, "resources.mode is inline"),
        ("spread", [FAST], [{"GPU": 1.0}], False, False, "no node has a CPU"),
    ],
)
def test_decoding_is_spread_where_gpus_outrun_the_threads_beside_them(
    asked: str, runs: list[Measured], nodes: list[dict[str, float]], scales: bool, wanted: bool, why: str
) -> None:
    found, told = spreads(asked, runs, nodes, 8, scales)
    assert found is wanted
    assert why in told
