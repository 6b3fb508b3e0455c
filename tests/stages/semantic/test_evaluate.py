"""Rows of the evaluation: what they say follows from the network's outputs, whatever the batch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from two_level_cases import COARSE, FINE, PREPROCESS, SIZE, album, backbone, drawn, setting

from stages.semantic.evaluate import TwoLevelEvaluate, TwoLevelEvaluateConfig
from stages.semantic.network import TwoLevelConfig, new_network
from stages.semantic.rules import rules_for

CPU = torch.device("cpu")
BOTH = ("oracle_k", "relative")


def untrained(config: TwoLevelConfig) -> SimpleNamespace:
    """A network with random heads as if trained: what is said of it must hold for any weights."""
    network = new_network(backbone(), config, (SIZE, SIZE), seed=5)
    facts = {"model": {name: getattr(config, name) for name in config.__dataclass_fields__}}
    return SimpleNamespace(files=network.to_files(), facts=facts, network=network.eval())


def stage(config: TwoLevelConfig, **changes) -> tuple[TwoLevelEvaluate, SimpleNamespace]:
    trained = untrained(config)
    rules = changes.pop("rules", rules_for(config.loss, config.coarse_only))
    found = TwoLevelEvaluate(TwoLevelEvaluateConfig(rules=rules, preprocess=PREPROCESS, **changes))
    found.setup(CPU, {"network": trained, "backbone": backbone()})
    return found, trained


def batch_of(images: np.ndarray, rows: list[dict | None]) -> dict:
    valid = np.array([row is not None for row in rows])
    return {"pixels": images, "rows": rows, "valid": valid, "key": [f"k{i}" for i in range(len(rows))]}


def judged(found: TwoLevelEvaluate, count: int = 10) -> tuple[list[dict], np.ndarray, list[dict]]:
    images, fine, coarse = drawn(count, seed=3)
    rows = [{"fine": f, "coarse": c} for f, c in zip(fine, coarse, strict=True)]
    return found(batch_of(images, list(rows))), images, rows


@pytest.mark.parametrize("loss", ["focal", "bce"])
@pytest.mark.parametrize("coarse_input", ["fine", "features"])
def test_rows_say_what_the_network_puts_out(loss: str, coarse_input: str) -> None:
    evaluate, trained = stage(TwoLevelConfig(len(FINE), len(COARSE), loss, coarse_input), threshold=0.5, top=3)
    found, images, rows = judged(evaluate)
    with torch.no_grad():
        outputs = trained.network(PREPROCESS.normalise(torch.from_numpy(images)))
        scores = outputs.fine.softmax(1) if loss == "focal" else outputs.fine.sigmoid()
    for i, (told, row) in enumerate(zip(found, rows, strict=True)):
        np.testing.assert_allclose(told["fine_scores"].astype(float), scores[i].numpy(), atol=1e-3)
        np.testing.assert_allclose(told["coarse_scores"], outputs.coarse[i].softmax(0).numpy(), rtol=1e-4)
        assert told["coarse"] == int(outputs.coarse[i].argmax())
        assert (told["true"], told["coarse_true"]) == (row["fine"], row["coarse"])
        for rule in evaluate.config.rules:
            said = told[f"predicted/{rule}"]
            if rule == "oracle_k":
                assert said == sorted(scores[i].topk(len(row["fine"])).indices.tolist())
            if rule == "threshold":
                assert said == [f for f in range(len(FINE)) if scores[i, f] > 0.5]
            assert told[f"fine_exact/{rule}"] == (said == row["fine"])
            first = "FT" if said == row["fine"] else "FF"
            assert told[f"case/{rule}"] == first + ("CT" if told["coarse"] == row["coarse"] else "CF")
    pa.Table.from_pylist(found, schema=evaluate.schema)


@pytest.mark.parametrize("loss", ["focal", "bce"])
@pytest.mark.parametrize("top", [1, 3, 9])
def test_the_decision_path_adds_up_to_the_chosen_logit(loss: str, top: int) -> None:
    evaluate, trained = stage(TwoLevelConfig(len(FINE), len(COARSE), loss), top=top)
    found, images, _ = judged(evaluate)
    with torch.no_grad():
        outputs = trained.network(PREPROCESS.normalise(torch.from_numpy(images)))
    for told, logits in zip(found, outputs.coarse, strict=True):
        total = np.sum(told["path_contribution"]) + told["path_rest"] + told["path_bias"]
        assert total == pytest.approx(float(logits.max()), rel=1e-4, abs=1e-5)
        assert len(told["path_fine"]) == min(top, len(FINE))
        assert (np.diff(told["path_contribution"]) <= 0).all()
        for f, score in zip(told["path_fine"], told["path_score"], strict=True):
            assert float(told["fine_scores"][f]) == pytest.approx(score, abs=1e-3)


def test_taking_a_fine_class_away_costs_the_chosen_logit_its_contribution() -> None:
    evaluate, trained = stage(TwoLevelConfig(len(FINE), len(COARSE), "bce"), top=len(FINE))
    found, images, _ = judged(evaluate, 4)
    with torch.no_grad():
        scores = trained.network(PREPROCESS.normalise(torch.from_numpy(images))).fine.sigmoid()
        heads = trained.network.heads
        for i, told in enumerate(found):
            for f, added in zip(told["path_fine"], told["path_contribution"], strict=True):
                without = scores[i].clone()
                without[f] = 0
                change = heads.coarse(heads.scale * (scores[i] - without))[told["coarse"]] - told["path_bias"]
                assert added == pytest.approx(float(change), abs=1e-5)


def test_a_batch_says_what_its_images_say_alone() -> None:
    evaluate, _ = stage(TwoLevelConfig(len(FINE), len(COARSE)))
    together, images, rows = judged(evaluate)
    for i, row in enumerate(rows):
        (alone,) = evaluate(batch_of(images[i : i + 1], [row]))
        assert alone.keys() == together[i].keys()
        for name, value in together[i].items():
            if isinstance(value, np.ndarray) and value.dtype != np.int32:
                atol = 1e-3 if value.dtype == np.float16 else 1e-6
                np.testing.assert_allclose(alone[name].astype(float), value.astype(float), rtol=1e-5, atol=atol)
            elif isinstance(value, float):
                assert alone[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
            else:
                assert np.array_equal(alone[name], value), name


def test_padding_is_left_out_and_unlabelled_images_are_not_judged() -> None:
    evaluate, _ = stage(TwoLevelConfig(len(FINE), len(COARSE)))
    images, _, _ = drawn(4)
    people_only, unknown = {"fine": [], "coarse": None}, {}
    found = evaluate(batch_of(images, [{"fine": [1, 0], "coarse": 0}, None, people_only, unknown]))
    assert len(found) == 3
    assert found[0]["true"] == [0, 1], "rising"
    assert found[1]["predicted/oracle_k"] == []
    assert found[1]["fine_exact/oracle_k"] is True
    assert found[1]["case/oracle_k"] is None
    assert found[2]["true"] is None
    assert found[2]["predicted/oracle_k"] is None
    assert found[2]["predicted/relative"] is not None
    assert found[2]["fine_exact/relative"] is None
    pa.Table.from_pylist(found, schema=evaluate.schema)


def test_a_coarse_only_network_has_neither_sets_nor_a_path() -> None:
    config = TwoLevelConfig(len(FINE), len(COARSE), coarse_only=True)
    evaluate, _ = stage(config)
    found, _, _ = judged(evaluate, 3)
    assert all(len(told["fine_scores"]) == 0 for told in found)
    assert all(len(told["path_fine"]) == 0 and told["path_bias"] is None for told in found)
    assert not any(name.startswith("case") for name in evaluate.schema.names)
    with pytest.raises(ValueError, match="coarse-only network has no fine scores"):
        stage(config, rules=("threshold",))


def test_costs_and_mistakes_are_told() -> None:
    evaluate, _ = stage(TwoLevelConfig(len(FINE), len(COARSE)))
    cost = evaluate.cost()
    first, second = 2 * 27 * 8 * 7 * 7, 2 * 72 * 12 * 5 * 5
    assert cost["flops_per_row"] == pytest.approx(first + second, rel=0.05)
    assert evaluate.prepare(np.zeros((30, 40, 3), np.uint8), {})["pixels"].shape == (3, SIZE, SIZE)
    blank = TwoLevelEvaluate(TwoLevelEvaluateConfig())
    with pytest.raises(RuntimeError, match="call setup"):
        blank(batch_of(np.zeros((1, 3, SIZE, SIZE), np.uint8), [{}]))
    with pytest.raises(ValueError, match="rules"):
        TwoLevelEvaluateConfig(rules=("best",))


def test_the_training_recipe_and_the_stage_agree_on_the_tune_split() -> None:
    from stages.semantic.train import train_two_level

    config = setting(epochs=3)
    data = {"train": album(96, size=18), "tune": album(40, seed=1)}
    files, facts = train_two_level(backbone(), data, config)
    evaluate = TwoLevelEvaluate(TwoLevelEvaluateConfig(preprocess=PREPROCESS))
    evaluate.setup(CPU, {"network": SimpleNamespace(files=files, facts=facts), "backbone": backbone()})
    images, fine, coarse = drawn(40, seed=1)
    rows: list[dict | None] = [{"fine": f, "coarse": c} for f, c in zip(fine, coarse, strict=True)]
    found = evaluate(batch_of(images, rows))
    ia = np.mean([told["case/oracle_k"] == "FTCT" for told in found])
    exact = np.mean([told["fine_exact/oracle_k"] for told in found])
    right = np.mean([told["coarse"] == told["coarse_true"] for told in found])
    assert (ia, exact, right) == pytest.approx([facts["metrics"][n] for n in ("ia", "fine_exact", "coarse_accuracy")])
