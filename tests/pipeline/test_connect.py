"""Starting a Ray: patience with a busy machine, and none with anything else."""

from __future__ import annotations

import pytest

from pipeline import cluster
from pipeline.errors import RaylensError
from pipeline.options import Resources

BUSY = Exception("The current node timed out during startup. This could happen because ...")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """How each start of Ray ends, in turn."""
    ends: list[Exception | None] = []

    def init(**settings: object) -> None:
        assert settings["address"] == "local"
        if (end := ends.pop(0)) is not None:
            raise end

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "init", init)
    return ends


def test_a_machine_that_is_too_busy_is_given_another_try_and_that_is_said(starts: list[Exception | None]) -> None:
    starts += [BUSY, BUSY, None]
    said: list[str] = []
    cluster.connect(Resources(), said.append)
    assert said == ["Ray did not start in time, for this machine is busy: once more"] * 2
    assert starts == []


@pytest.mark.parametrize(
    ("ends", "tried"), [([BUSY, BUSY, BUSY], 3), ([ValueError("no such port"), None], 1)], ids=["busy", "wrong"]
)
def test_what_does_not_pass_is_one_message(starts: list[Exception | None], ends: list[Exception], tried: int) -> None:
    starts += ends
    with pytest.raises(RaylensError, match=r"Ray could not be reached or started .*(timed out|no such port)"):
        cluster.connect(Resources(), lambda _: None)
    assert len(ends) - len(starts) == tried
