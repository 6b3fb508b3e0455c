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

CPU = torch.device("cpu")


def untrained(config: TwoLevelConfig) -> SimpleNamespace:
    """A network with random heads as if trained: what is said of it must hold for any weights."""
    network = new_network(backbone(), config, (SIZE, SIZE), seed=5)
    facts = {"model": {name: getattr(config, name) for name in config.__dataclass_fields__}}
    return SimpleNamespace(files=network.to_files(), facts=facts, network=network.eval())


def stage(config: TwoLevelConfig, **changes) -> tuple[TwoLevelEvaluate, SimpleNamespace]:
    trained = untrained(config)
    found = TwoLevelEvaluate(TwoLevelEvaluateConfig(preprocess=PREPROCESS, **changes))
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
    evaluate, trained = stage(TwoLevelConfig(len(FINE), len(COARSE), loss, coarse_input), top=3)
    found, images, rows = judged(evaluate)
    with torch.no_grad():
        outputs = trained.network(PREPROCESS.normalise(torch.from_numpy(images)))
        scores = outputs.fine.softmax(1) if loss == "focal" else outputs.fine.sigmoid()
    for i, (told, row) in enumerate(zip(found, rows, strict=True)):
        np.testing.assert_allclose(told["fine_scores"], scores[i].numpy(), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(told["coarse_scores"], outputs.coarse[i].softmax(0).numpy(), rtol=1e-4)
        assert told["coarse"] == int(outputs.coarse[i].argmax())
        assert (told["true"], told["coarse_true"]) == (row["fine"], row["coarse"])
    kept = pa.Table.from_pylist(found, schema=evaluate.schema).column("fine_scores")
    for told, scored in zip(found, kept, strict=True):
        assert np.array_equal(np.asarray(scored.values), told["fine_scores"]), "kept as they were computed"


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
                np.testing.assert_allclose(alone[name], value, rtol=1e-5, atol=1e-6)
            elif isinstance(value, float):
                assert alone[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
            else:
                assert np.array_equal(alone[name], value), name


def test_padding_is_left_out_and_labels_are_passed_on_as_far_as_they_are_known() -> None:
    evaluate, _ = stage(TwoLevelConfig(len(FINE), len(COARSE)))
    images, _, _ = drawn(4)
    people_only, unknown = {"fine": [], "coarse": None}, {}
    found = evaluate(batch_of(images, [{"fine": [1, 0], "coarse": 0}, None, people_only, unknown]))
    assert len(found) == 3
    assert found[0]["true"] == [0, 1], "rising"
    assert (found[1]["true"], found[1]["coarse_true"]) == ([], None)
    assert (found[2]["true"], found[2]["coarse_true"]) == (None, None)
    assert len(found[2]["fine_scores"]) == len(FINE), "what is said of an image does not need its labels"
    pa.Table.from_pylist(found, schema=evaluate.schema)


def test_a_coarse_only_network_has_neither_fine_scores_nor_a_path() -> None:
    config = TwoLevelConfig(len(FINE), len(COARSE), coarse_only=True)
    evaluate, _ = stage(config)
    found, _, _ = judged(evaluate, 3)
    assert all(len(told["fine_scores"]) == 0 for told in found)
    assert all(len(told["path_fine"]) == 0 and told["path_bias"] is None for told in found)


def test_costs_and_mistakes_are_told() -> None:
    evaluate, _ = stage(TwoLevelConfig(len(FINE), len(COARSE)))
    cost = evaluate.cost()
    first, second = 2 * 27 * 8 * 7 * 7, 2 * 72 * 12 * 5 * 5
    assert cost["flops_per_row"] == pytest.approx(first + second, rel=0.05)
    assert evaluate.prepare(np.zeros((30, 40, 3), np.uint8), {})["pixels"].shape == (3, SIZE, SIZE)
    blank = TwoLevelEvaluate(TwoLevelEvaluateConfig())
    with pytest.raises(RuntimeError, match="call setup"):
        blank(batch_of(np.zeros((1, 3, SIZE, SIZE), np.uint8), [{}]))
    with pytest.raises(ValueError, match="at least 1 class"):
        TwoLevelEvaluateConfig(top=0)


def test_the_training_recipe_and_the_indexes_agree_on_the_tune_split() -> None:
    from stages.semantic.indexes import SemanticIndexes, SemanticIndexesConfig
    from stages.semantic.train import train_two_level

    config = setting(epochs=3)
    data = {"train": album(96, size=18), "tune": album(40, seed=1)}
    files, facts = train_two_level(backbone(), data, config)
    evaluate = TwoLevelEvaluate(TwoLevelEvaluateConfig(preprocess=PREPROCESS))
    evaluate.setup(CPU, {"network": SimpleNamespace(files=files, facts=facts), "backbone": backbone()})
    images, fine, coarse = drawn(40, seed=1)
    rows: list[dict | None] = [{"fine": f, "coarse": c} for f, c in zip(fine, coarse, strict=True)]
    found = evaluate(batch_of(images, rows))
    schema = pa.schema([pa.field("key", pa.string()), pa.field("split", pa.string()), *evaluate.schema])
    keyed = [{"key": f"k{i}", "split": "tune", **told} for i, told in enumerate(found)]
    reduction = SemanticIndexes(SemanticIndexesConfig(("oracle_k",), FINE, COARSE))
    state = reduction.add(reduction.start(), pa.Table.from_pylist(keyed, schema=schema))
    told = reduction.summary(reduction.finish("all", state))["tune"]
    judged = told["rules"]["oracle_k"]
    values = [judged["set"]["IA"]["value"], judged["fine_exact"]["value"], told["coarse_accuracy"]["value"]]
    assert values == pytest.approx([facts["metrics"][n] for n in ("ia", "fine_exact", "coarse_accuracy")])
