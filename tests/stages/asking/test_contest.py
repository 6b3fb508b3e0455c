"""The contest: every method's PSNR as a conversation of its own gives it, and the tables as numpy gives them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from asking_cases import SMALL, pictures

from stages.asking.agent import described, new_agent
from stages.asking.ask import Ask, AskConfig
from stages.asking.bilateral import BilateralSolver
from stages.asking.colour import to_unit
from stages.asking.contest import Contest, ContestConfig, Solver, solved
from stages.asking.contest_table import ContestTable, ContestTableConfig, OrderConfig, QuestionOrder
from stages.asking.levin import Levin
from stages.asking.points import random_corners
from stages.asking.process import process
from stages.asking.tasks import ColorNatural, Inpaint
from stages.preprocess import Preprocess
from stages.training_draws import row_seeds

TASK = ColorNatural(hints=2)
FRAME = Preprocess((12, 10), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CONFIG = ContestConfig(FRAME, hints=2, seed=5)
INPUTS = ("asked", "points", "none", "exact")


def agent(name: str) -> Any:
    return new_agent(TASK, SMALL, INPUTS.index(name))


def contest() -> Contest:
    trained = {
        name: SimpleNamespace(facts={**described(TASK, SMALL), "side": 3}, files=agent(name).to_files())
        for name in INPUTS
    }
    stage = Contest(CONFIG)
    stage.setup(torch.device("cpu"), trained)
    return stage


def batch(rows: slice, valid: list[bool] | None = None) -> dict[str, Any]:
    pixels = pictures(4)[rows].numpy()
    keys = np.array(["a", "b", "c", "d"])[rows].tolist()
    return {"pixels": pixels, "key": keys, "valid": valid or [True] * len(pixels)}


def test_rows_are_what_each_conversation_gives_whatever_else_is_in_the_batch() -> None:
    stage = contest()
    rows = stage(batch(slice(0, 4), [True, True, False, True]))
    assert len(rows) == 3
    assert {f"psnr/{name}" for name in CONFIG.methods} | {"question_error", "mean_error"} == set(rows[0])
    alone = stage(batch(slice(3, 4)))[0]
    for name, value in alone.items():
        assert rows[2][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    image = pictures(4)[1:2]
    # Before any hint the solves are grey, and all of them alike.
    grey = {round(float(rows[1][f"psnr/{m}"][0]), 4) for m in CONFIG.methods if m.startswith(("levin", "bilateral"))}
    assert len(grey) == 1
    with torch.no_grad():
        rgb = to_unit(image)
        zeros = [torch.zeros(1, n, 12, 10) for n in (1, 2, 2)]
        y, _ = agent("none")(TASK.observe(rgb), *zeros)
        error = (y - TASK.truth(rgb)).abs().mean(1)[0].double()
    asked = process(agent("asked"), TASK, image, 2)
    for number, question in enumerate(asked.questions[0].double()):
        under = float((error * question).sum() / question.sum())
        assert rows[1]["question_error"][number] == pytest.approx(under, rel=1e-4)
    assert rows[1]["mean_error"] == pytest.approx(float(error.mean()), rel=1e-5)


def test_cost_counts_the_passes_of_networks_and_not_the_solves() -> None:
    # Two that ask and two told at points take 3 turns each; one is told nothing, and looks again for its error.
    assert contest().cost()["forwards_per_row"] == 4 * 3 + 2
    one = Ask(AskConfig(FRAME))
    one.setup(
        torch.device("cpu"), {"agent": SimpleNamespace(facts=described(TASK, SMALL), files=agent("asked").to_files())}
    )
    assert contest().cost()["flops_per_row"] == pytest.approx(one.cost()["flops_per_row"] / 3 * 14)
    with pytest.raises(RuntimeError, match="call setup"):
        Contest(CONFIG).cost()


@pytest.mark.parametrize("solver", [Levin(), BilateralSolver()])
def test_many_threads_solve_each_picture_as_one_does(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    x = TASK.observe(to_unit(pictures(5)))
    known = (torch.rand(5, 1, 12, 10, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    told = solved(solver, TASK)
    hints = known * torch.rand(5, 2, 12, 10, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    found = told(x, known, hints)
    alone = [told(x[at : at + 1], known[at : at + 1], hints[at : at + 1]) for at in range(5)]
    assert torch.equal(found, torch.cat(alone))


def told_at_points(method: str, image: torch.Tensor, key: str) -> list[float]:
    """Written out: one map, to which a square of 3 x 3 is added at a time, told the mean of what is true there."""
    kind, _, place = method.partition("_")
    x, truth = TASK.observe(to_unit(image)), TASK.truth(to_unit(image))
    known, hints = torch.zeros(1, 1, 12, 10), torch.zeros(1, 2, 12, 10)
    corners = random_corners(row_seeds(5, 0, [key]), 2, 3, 12, 10)[0].tolist()
    found = []
    for number in range(3):
        if kind == "points":
            y = agent("points")(x, known, hints, torch.zeros(1, 2, 12, 10))[0]
        else:
            solver = Levin() if kind == "levin" else BilateralSolver()
            parts = (x[0, 0] + 1) / 2, known[0, 0] > 0, hints[0]
            y = torch.from_numpy(solver(*(part.numpy() for part in parts)))[None].float()
        found.append(decibels(TASK.picture(x, y), image))
        if number == 2:
            break
        wrong = ((y - truth) ** 2).sum(1)[0] * (1 - known[0, 0])
        least_to_most = sorted((float(wrong[i : i + 3, j : j + 3].sum()), i, j) for i in range(10) for j in range(8))
        i, j = corners[number] if place == "random" else least_to_most[-1][1:]
        here = slice(i, i + 3), slice(j, j + 3)
        known[0, 0][here] = 1
        hints[0][:, *here] = truth[0][:, *here].mean((1, 2))[:, None, None]
    return found


def decibels(picture: torch.Tensor, image: torch.Tensor) -> float:
    error = (picture * 255).round().clamp(0, 255).double() - image.double()
    return 10 * float(np.log10(255**2 / (error**2).mean()))


@pytest.mark.parametrize("method", CONFIG.methods)
@torch.no_grad()
def test_every_method_s_psnr_is_that_of_its_own_network_or_solve(method: str) -> None:
    row = contest()(batch(slice(0, 4)))[1]
    image = pictures(4)[1:2]
    if method == "none":
        x = TASK.observe(to_unit(image))
        y, _ = agent("none")(x, *(torch.zeros(1, n, 12, 10) for n in (1, 2, 2)))
        expected = [decibels(TASK.picture(x, y), image)]
    elif method in ("asked", "asked_exact"):
        own = agent("asked" if method == "asked" else "exact")
        expected = process(own, TASK, image, 2).psnr[0].tolist()
    else:
        expected = told_at_points(method, image, "b")
    assert row[f"psnr/{method}"] == pytest.approx(expected, abs=1e-3)


def test_methods_differ_in_what_they_are_told_and_by_whom_they_are_coloured() -> None:
    row = contest()(batch(slice(0, 4)))[1]
    assert len({tuple(np.round(row[f"psnr/{method}"], 3)) for method in CONFIG.methods}) == len(CONFIG.methods)


def test_what_is_no_picture_of_lightness_has_no_solve() -> None:
    with pytest.raises(ValueError, match="cannot be solved for in task 'inpaint'"):
        solved(Levin(), Inpaint())
    few = ContestConfig(FRAME, exact=False, classical=False)
    assert few.methods == ("asked", "points_random", "points_max_error", "none")


def test_the_table_is_numpy_s_in_any_order() -> None:
    methods = ("asked", "points_random", "none")
    rng = np.random.default_rng(0)
    values = {m: rng.uniform(15, 30, (40, 1 if m == "none" else 3)) for m in methods}
    values["asked"][0, 2] = values["points_random"][3, :2] = values["none"][3, 0] = np.inf  # without any error
    table = pa.table({f"psnr/{m}": v.tolist() for m, v in values.items()})
    reduction = ContestTable(ContestTableConfig(methods, 2))
    whole = reduction.add(reduction.start(), table)
    parts = [reduction.add(reduction.start(), table.slice(at, 8)) for at in (32, 0, 24, 8, 16)]
    merged = reduction.start()
    for part in parts:
        merged = reduction.merge(merged, part)
    assert np.array_equal(whole, merged)
    rows = reduction.finish("all", whole).to_pylist()
    assert [(r["method"], r["answers"]) for r in rows] == [
        ("asked", 0), ("asked", 1), ("asked", 2), ("points_random", 0), ("points_random", 1), ("points_random", 2),
        ("none", 0),
    ]  # fmt: skip
    # The first and the fourth picture are coloured without error by one of the methods: they count for none of them.
    counted = {m: np.delete(v, [0, 3], axis=0) for m, v in values.items()}
    exact = {("asked", 2): 1, ("points_random", 0): 1, ("points_random", 1): 1, ("none", 0): 1}
    for r in rows:
        own = counted[r["method"]]
        ahead = counted["asked"][:, r["answers"]] - own[:, r["answers"]]
        assert (r["n"], r["psnr"]) == (38, pytest.approx(own[:, r["answers"]].mean()))
        assert (r["exact"], r["left_out"]) == (exact.get((r["method"], r["answers"]), 0), 2)
        assert r["psnr_se"] == pytest.approx(own[:, r["answers"]].std(ddof=1) / np.sqrt(38), rel=1e-5)
        assert r["behind"] == pytest.approx(ahead.mean(), abs=1e-6)
        assert r["behind_se"] == pytest.approx(ahead.std(ddof=1) / np.sqrt(38), abs=1e-6)
        if r["answers"]:
            gains = own[:, r["answers"]] - own[:, r["answers"] - 1]
            assert r["gain"] == pytest.approx(gains.mean(), abs=1e-6)
            assert r["gain_se"] == pytest.approx(gains.std(ddof=1) / np.sqrt(38), rel=1e-5)
        else:
            assert r["gain"] is None
    with pytest.raises(ValueError, match=r"after 0\.\.3 hints"):
        ContestTable(ContestTableConfig(methods, 3)).add(whole, table)


def test_where_every_picture_is_left_out_the_table_says_how_many() -> None:
    reduction = ContestTable(ContestTableConfig(("asked", "none"), 1))
    table = pa.table({"psnr/asked": [[20.0, 30.0]] * 2, "psnr/none": [[np.inf]] * 2})
    rows = reduction.finish("all", reduction.add(reduction.start(), table)).to_pylist()
    assert [(r["method"], r["answers"], r["n"], r["left_out"], r["psnr"]) for r in rows] == [
        ("asked", 0, 0, 2, None), ("asked", 1, 0, 2, None), ("none", 0, 0, 2, None),
    ]  # fmt: skip
    assert reduction.finish("all", reduction.start()).num_rows == 0


def test_the_order_of_questions_and_its_distribution() -> None:
    under = [[0.4, 0.1], [0.3, float("nan")], [0.9, 0.2]]
    table = pa.table({"question_error": under, "mean_error": pa.array([0.2, 0.1, 0.3], pa.float32())})
    reduction = QuestionOrder(OrderConfig(2, bins=4, limit=0.8))
    state = reduction.add(reduction.start(), table)
    split = reduction.merge(
        reduction.add(reduction.start(), table.slice(1)), reduction.add(reduction.start(), table.slice(0, 1))
    )
    assert np.array_equal(state, split)
    mean, first, second = reduction.finish("all", state).to_pylist()
    assert (mean["question"], mean["n"], mean["error"]) == (0, 3, pytest.approx(0.2))
    assert mean["above"] is None
    assert (first["n"], first["error"]) == (3, pytest.approx(1.6 / 3))
    assert first["above"] == pytest.approx((0.2 + 0.2 + 0.6) / 3)
    assert first["above_se"] == pytest.approx(np.std([0.2, 0.2, 0.6], ddof=1) / np.sqrt(3))
    assert (second["n"], second["error"], second["above"]) == (2, pytest.approx(0.15), pytest.approx(-0.1))
    assert first["counts"] == [0, 1, 1, 1], "0.9 is beyond the last bin and in it"
    assert second["counts"] == [1, 1, 0, 0], "a question that covers nothing is none"
    assert reduction.finish("all", reduction.start()).num_rows == 0
