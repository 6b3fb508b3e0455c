"""Workers, drivers and nodes killed at random: the short version of what ``make chaos`` does for ten minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import Chaos, ground

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_runs_that_are_killed_at_everywhere_end_as_if_nothing_had_happened(tmp_path: Path) -> None:
    with ground() as place:
        chaos = Chaos(
            place,
            tmp_path,
            seed=8,
            kills={"worker": 8, "driver": 3, "node": 2},
            config={"keys": 24 * 16, "pause_s": 0.1},
            gap_s=(0.2, 1.5),
        )
        while chaos.strikes:
            chaos.run()
            assert chaos.figures.runs < 10, "hardly anything is killed before a run is complete"
    assert chaos.figures.kills == {"worker": 8, "driver": 3, "node": 2}
