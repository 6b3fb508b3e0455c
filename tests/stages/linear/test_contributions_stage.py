"""The contributions stage: its rows against derivatives taken one by one, and images that do not know each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stage_cases import LABELS, SMALL, batch, input_of, network
from torch.nn import functional as F

from pipeline.slices import to_table
from pipeline.steps import row_schema
from stages.linear.classifier import View
from stages.linear.contributions_stage import ContributionsConfig, ContributionsStage


def stage(**options: Any) -> ContributionsStage:
    view = View(options.pop("attack", 0.0), "float64", SMALL)
    made = ContributionsStage(ContributionsConfig(view=view, **options))
    made.setup(torch.device("cpu"), {"network": network()})
    return made


def slow(x: torch.Tensor, target: int) -> dict[str, Any]:
    """Each part by its own derivative: the biases one by one, the norm folded into its convolution by hand."""
    net = network().double()
    conv, norm, head = net[0], net[1], net[5]
    inside = conv(x)
    shift = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
    before = norm(inside)
    saturated = torch.where(before > 6, 6.0, 0.0).detach()
    after = F.relu6(before)
    score = head(F.max_pool2d(after, 2).flatten(1))[0, target]
    own, of_inside, of_before, of_after = torch.autograd.grad(score, (x, inside, before, after))
    layers = [
        (of_inside * conv.bias.view(1, -1, 1, 1)).sum() + (of_before * shift.view(1, -1, 1, 1)).sum(),
        (of_after * saturated).sum(),
        head.bias[target],
    ]
    return {"score": score.item(), "input": (own * x).sum().item(), "layers": [v.item() for v in layers]}


def test_rows_are_the_parts_taken_one_by_one() -> None:
    b = batch()
    for i, row in enumerate(stage(target=2)(b)):
        expected = slow(input_of(b, i), 2)
        assert row["layer_names"] == ["0", "2", "5"]
        assert row["score"] == pytest.approx(expected["score"], rel=1e-10)
        assert row["input"] == pytest.approx(expected["input"], rel=1e-10)
        assert row["layers"] == pytest.approx(expected["layers"], rel=1e-6)  # kept in single precision
        assert row["residual"] == pytest.approx(sum(expected["layers"]), rel=1e-10)
        assert row["share"] == pytest.approx(sum(expected["layers"]) / expected["score"], rel=1e-10)
        assert abs(row["gap"]) < 1e-12


def test_shares_sum_to_one() -> None:
    for row in stage(attack=16)(batch()):
        for start in ("", "attacked_"):
            parts = [row[f"{start}input"], *row[f"{start}layers"]]
            assert sum(parts) / row[f"{start}score"] == pytest.approx(1, abs=1e-5)
            assert 0 <= row[f"{start}magnitude"] <= 1


def test_a_batch_equals_its_images_alone() -> None:
    made = stage(attack=8)
    together = made(batch())
    for i in range(4):
        # At the same places, beside zeros, and beside other images.
        alone = made(batch((i,)))[0]
        beside = made(batch((3, i, i), (False, True, False)))[0]
        for name, value in together[i].items():
            for other in (alone[name], beside[name]):
                if isinstance(value, (float, np.ndarray)):
                    assert other == pytest.approx(value, rel=1e-9, abs=1e-12), name
                else:
                    assert other == value, name


def test_targets_are_the_first_class_the_label_or_one_class() -> None:
    predicted, labels = stage()(batch()), stage(target="label")(batch())
    assert all(row["target"] == row["predicted"] for row in predicted)
    assert [row["target"] for row in stage(target=1)(batch())] == [1, 1, 1, 1]
    assert [row.get("target") for row in labels] == [2, 0, None, 3]
    assert labels[2]["status"] == "failed"
    assert "no label" in labels[2]["error"]


def test_a_label_beyond_the_classes_fails_alone() -> None:
    b = batch((0, 1))
    b["rows"][0]["label"] = 4
    first, second = stage(target="label")(b)
    assert "class 4 is none of the network's 4" in first["error"]
    assert second["target"] == 0


def test_the_attacked_image_is_explained_as_an_image_of_its_own() -> None:
    b = batch()
    found = stage(attack=16)(b)
    net = network()
    for i, row in enumerate(found):
        x = input_of(b, i)
        against = LABELS[i] if LABELS[i] is not None else row["predicted"]
        loss = F.cross_entropy(net(x), torch.tensor([against]))
        step = torch.autograd.grad(loss, x)[0].sign()
        colours = b["pixels"][i].astype(float) / 255 + 16 / 255 * step[0].numpy()
        moved = torch.from_numpy(np.clip(colours, 0, 1) - np.array(SMALL.mean).reshape(3, 1, 1))
        moved = (moved / torch.tensor(SMALL.std, dtype=torch.float64).view(3, 1, 1)).unsqueeze(0).requires_grad_(True)
        expected = slow(moved, row["attacked_predicted"])
        assert row["attacked_target"] == int(net(moved).argmax())
        assert row["attacked_score"] == pytest.approx(expected["score"], rel=1e-6)
        assert row["attacked_input"] == pytest.approx(expected["input"], rel=1e-5)


def test_rows_fit_their_schema() -> None:
    for made in (stage(), stage(attack=4)):
        rows = [{"key": r, "status": "ok", "error": None} | row for r, row in zip("abcd", made(batch()), strict=True)]
        table = to_table(rows, row_schema(made), "contributions")
        assert table.num_rows == 4
        assert ("attacked_layers" in table.column_names) == (made.config.view.attack > 0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="neither predicted nor label"):
        ContributionsConfig(target="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no class id"):
        ContributionsConfig(target=-1)
    with pytest.raises(ValueError, match="grey levels"):
        View(attack=300)
