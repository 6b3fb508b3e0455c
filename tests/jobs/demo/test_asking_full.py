"""What the demo in full says of asking: each claim from the numbers that it is about."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.demo.asking_full import claims


def tables() -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Where everything holds."""
    gains = {"asked": (2.0, 0.4), "points_random": (0.5, 0.3)}
    contest: list[dict[str, Any]] = []
    for method, by in gains.items():
        contest.append({"method": method, "answers": 0, "gain": None, "gain_se": None, "behind": 0.0, "behind_se": 0.0})
        for answers, gain in enumerate(by, 1):
            behind = 0.0 if method == "asked" else 1.5
            row = {"gain": gain, "gain_se": 0.1, "behind": behind, "behind_se": 0.2}
            contest.append({"method": method, "answers": answers} | row)
    order = [{"question": 0, "error": 0.2, "above": None, "above_se": None}]
    order.append({"question": 1, "error": 0.25, "above": 0.05, "above_se": 0.01})
    classes = [
        {"network": network, "question": question, "precision": 0.9, "above": above, "above_se": 0.02}
        for network, above in (("asked", 0.1), ("exact", -0.1))
        for question in (0, 1)
    ]
    return contest, order, classes


def test_all_hold_where_they_do_and_the_numbers_are_told() -> None:
    found = claims(*tables())
    assert [holds for _, holds, _ in found] == [True] * 5
    assert [told for _, _, told in found] == [
        "+2.00 ± 0.10, +0.40 ± 0.10 dB",
        "+2.00, +0.40 dB",
        "ahead by +1.50 ± 0.20, +1.50 ± 0.20 dB",
        "error 0.250, above the mean by +0.0500 ± 0.0100",
        "90.0 %, +10.00 ± 2.00 points above",
    ]


@pytest.mark.parametrize(
    ("table", "row", "change", "broken"),
    [
        (0, 2, {"gain": 0.05}, [0]),
        (0, 2, {"gain": 2.1}, [1]),
        (0, 1, {"gain": -2.0}, [0, 1]),
        (0, 4, {"behind": 0.1}, [2]),
        (1, 1, {"above": 0.005}, [3]),
        (2, 0, {"above": 0.01}, [4]),
    ],
)
def test_each_breaks_by_its_own_numbers(table: int, row: int, change: dict[str, float], broken: list[int]) -> None:
    given = tables()
    given[table][row] |= change
    assert [at for at, (_, holds, _) in enumerate(claims(*given)) if not holds] == broken
