"""A slice at its fixed shape: a row's own error is that row's, the device's and the engine's are not."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.decode import Prepared
from pipeline.slices import DeviceLostError, StageError, is_out_of_memory, run_slice


class Stage:
    """Doubles its values; raises ``error`` where ``culprit`` is in the batch."""

    def __init__(self, culprit: str = "", error: Exception | None = None) -> None:
        self.culprit, self.error, self.calls = culprit, error, []

    def __call__(self, batch):
        self.calls.append(list(batch["key"]))
        if self.error is not None and self.culprit in batch["key"]:
            raise self.error
        return [{"twice": float(v) * 2} for v in batch["x"][batch["valid"]]]


ROWS = [{"key": name} for name in "abcd"]
PREPARED = Prepared({"x": np.arange(3.0)}, (0, 1, 3), {2: "no image"})


def test_rows_keep_their_places_in_the_padded_shape():
    stage = Stage()
    found = run_slice(stage, "all", ROWS, PREPARED, shape=8, offset=2)
    assert stage.calls == [["", "", "a", "b", "", "d", "", ""]]
    assert [r["status"] for r in found] == ["ok", "ok", "failed", "ok"]
    assert [r.get("twice") for r in found] == [0.0, 2.0, None, 4.0]
    assert found[2]["error"] == "no image"


def test_the_row_that_raises_is_found_and_fails_alone_at_its_own_place():
    stage = Stage("b", RuntimeError("cannot digest\nthis"))
    found = run_slice(stage, "all", ROWS, PREPARED, shape=4)
    assert [r["status"] for r in found] == ["ok", "failed", "failed", "ok"]
    assert found[1]["error"] == "RuntimeError: cannot digest this"
    assert stage.calls[1:] == [["a", "", "", ""], ["", "b", "", ""], ["", "", "", "d"]]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA error: out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_no_room_is_the_callers_to_answer(error):
    assert is_out_of_memory(error)
    with pytest.raises(type(error)):
        run_slice(Stage("b", error), "all", ROWS, PREPARED, shape=4)


def test_a_spoilt_device_fails_no_row():
    """After an assertion in a kernel every call of this process raises: rows would fail one after the other."""
    stage = Stage("b", RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(DeviceLostError, match="device-side assert"):
        run_slice(stage, "all", ROWS, PREPARED, shape=4)
    assert len(stage.calls) == 1


def test_a_stage_that_breaks_its_contract_is_no_rows_fault():
    with pytest.raises(StageError, match="returned 0 rows for 3"):
        run_slice(lambda batch: [], "all", ROWS, PREPARED, shape=4)
