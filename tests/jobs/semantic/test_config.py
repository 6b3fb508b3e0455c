"""What the semantic job refuses before it trains, in words; and what its graph is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from coco_cases import config as coco_config
from coco_cases import drawn, put, through_the_engine
from PIL import Image

from jobs.config import check, load_config
from jobs.semantic import SemanticConfig, build
from jobs.semantic.variants import variants
from pipeline.errors import UsageError
from pipeline.steps import Job, Measure, Reduce, Train, config_fields

ROOT = Path(__file__).resolve().parents[3]
NETWORK = {"name": "squeezenet1_1", "seed": 0}
TAXONOMY = "public: [person]\nsupercategories: {animal: animal, vehicle: vehicle}\nrename: {dog: hound}\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filtered split of each name, made in this process; a run.json as the engine would write it."""
    root = tmp_path_factory.mktemp("semantic")
    (root / "mine.yaml").write_text(TAXONOMY)
    splits = {}
    for name, seed in (("train", 1), ("val", 2)):
        content = drawn(60, seed)
        for image in content["images"]:
            path = root / name / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 8), "white").save(path)
        splits[name] = {"annotations": str(put(root / f"{name}.json", content)), "images": str(root / name)}
    given = coco_config(splits, taxonomy=str(root / "mine.yaml"))
    made = through_the_engine(given, root / "coco", 20)
    described = {"job": "coco", "config": given.model_dump(mode="json"), "steps": []}
    made.folder.write("run.json", json.dumps(described).encode())
    return root


def config(project: Path, **more: Any) -> SemanticConfig:
    values: dict[str, Any] = {"coco": str(project / "coco"), "networks": [NETWORK], "training": {"batch": 4}}
    return check(SemanticConfig, values | more, where="test")


def test_each_network_is_trained_with_each_loss_and_as_a_baseline_then_measured_and_reduced(project: Path) -> None:
    given = config(project, networks=[NETWORK, NETWORK | {"seed": 1}, {"name": "resnet18", "seed": 0}])
    names = [variant.name for variant in variants(given)]
    assert names == [
        f"{network}_{kind}"
        for network in ("squeezenet1_1", "squeezenet1_1-2", "resnet18")
        for kind in ("focal", "bce", "coarse")
    ]
    job = build(given)
    assert [type(step) for step in job.steps] == [Train, Measure, Reduce] * 9
    assert [step.name for step in job.steps[:3]] == [f"{s}_squeezenet1_1_focal" for s in ("train", "rows", "indexes")]
    bce, coarse = job.step("train_resnet18_bce"), job.step("train_resnet18_coarse")
    assert isinstance(bce, Train)
    assert isinstance(coarse, Train)
    model = bce.trainer.config.model
    assert (model.fine, model.coarse, model.loss, model.coarse_only) == (5, 2, "bce", False)
    assert coarse.trainer.config.model.coarse_only
    reduce = job.step("indexes_resnet18_bce")
    assert isinstance(reduce, Reduce)
    assert reduce.reduction.config.fine_names == ("person", "hound", "cat", "car", "bus")
    assert reduce.reduction.config.coarse_names == ("animal", "vehicle")


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"evaluation": {"threshold": 0.5}}, {"indexes_squeezenet1_1_bce"}),
        ({"evaluation": {"relative": 0.8}}, {"indexes_squeezenet1_1_focal"}),
        ({"focal": {"gamma": 1.0}}, {"train_squeezenet1_1_focal"}),
    ],
    ids=["threshold", "relative", "gamma"],
)
def test_a_step_is_another_one_only_where_it_reads_what_changed(
    project: Path, change: dict[str, Any], moved: set[str]
) -> None:
    def settings(job: Job) -> dict[str, Any]:
        own = {Train: "trainer", Measure: "stage", Reduce: "reduction"}
        return {step.name: config_fields(getattr(step, own[type(step)]).config) for step in job.steps}

    plain, changed = settings(build(config(project))), settings(build(config(project, **change)))
    assert {name for name in plain if plain[name] != changed[name]} == moved


def test_splits_are_the_kept_images_with_both_labels(project: Path) -> None:
    job = build(config(project))
    tables = {name: source.list() for name, source in job.sources.items()}
    kept = json.loads(next(project.glob("coco/kept/*/instances_val.json")).read_text())
    truth = {image["file_name"]: image["coarse_index"] for image in kept["images"]}
    found = {row["key"]: row for row in tables["eval"].to_pylist()}
    assert {key: row["coarse"] for key, row in found.items()} == truth
    assert all(Path(row["uri"]) == project / "val" / key for key, row in found.items())
    assert all(row["fine"] and set(row["fine"]) <= ({1, 2}, {3, 4})[row["coarse"]] for row in found.values())
    both = sorted(tables["train"]["key"].to_pylist() + tables["tune"]["key"].to_pylist())
    kept = json.loads(next(project.glob("coco/kept/*/instances_train.json")).read_text())
    assert both == sorted(image["file_name"] for image in kept["images"])
    other = build(config(project, seed=1)).sources
    assert other["tune"].list()["key"].to_pylist() != tables["tune"]["key"].to_pylist()
    assert other["tune"].description != job.sources["tune"].description


def test_a_moved_coco_run_is_the_same_source_and_another_rule_is_another(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "coco", tmp_path / "moved")
    here, there = (build(config(project, coco=str(p))).sources["eval"] for p in (project / "coco", tmp_path / "moved"))
    assert here.description == there.description
    given = coco_config(
        {"val": {"annotations": str(project / "val.json"), "images": str(project / "val")}},
        taxonomy=str(project / "mine.yaml"),
        rule={"people_only": True},
    )
    made = through_the_engine(given, tmp_path / "people", 20)
    made.folder.write(
        "run.json", json.dumps({"job": "coco", "config": given.model_dump(mode="json"), "steps": []}).encode()
    )
    splits = {"train": "x", "tune": "y", "eval": "val"}
    with pytest.raises(UsageError, match="no split 'x'"):
        build(config(project, coco=str(made.url), splits=splits))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run), ["not a run folder", "raylens coco"]),
        (lambda run: (run / "run.json").write_text('{"job": "chip", "steps": []}'), ["'chip'", "raylens coco"]),
        (lambda run: next(run.glob("filter/val/receipts/*")).unlink(), ["shards of split 'val'", "raylens coco"]),
        (lambda run: (run / "filter/val/plan.json").unlink(), ["'val' is not filtered yet"]),
    ],
)
def test_a_coco_run_that_is_missing_unfinished_or_another_job_is_refused(
    project: Path, tmp_path: Path, damage: Any, words: list[str]
) -> None:
    shutil.copytree(project / "coco", tmp_path / "coco")
    damage(tmp_path / "coco")
    with pytest.raises(UsageError) as caught:
        build(config(project, coco=str(tmp_path / "coco")))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.where == str(tmp_path / "coco")


UNCUT = """
from torch import nn


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(3, 4)

    def forward(self, x):
        if x.mean() > 0:
            x = x + 1
        return self.classes(x.mean((2, 3)))


def moody():
    return Moody()
"""


def test_a_backbone_that_cannot_be_cut_is_refused_before_anything_is_trained(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moodysemantic.py").write_text(UNCUT)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"moodysemantic:moody cannot be trained on two levels: .+"):
        build(config(project, networks=[NETWORK, {"name": "moodysemantic:moody", "seed": 0}]))


def test_splits_with_other_classes_are_refused_by_name(project: Path, tmp_path: Path) -> None:
    content = drawn(20, 3)
    content["categories"].append({"id": 60, "name": "tram", "supercategory": "vehicle"})
    splits = {
        "train": {"annotations": str(project / "train.json")},
        "val": {"annotations": str(put(tmp_path / "val.json", content))},
    }
    given = coco_config(splits, taxonomy=str(project / "mine.yaml"))
    made = through_the_engine(given, tmp_path / "coco", 20)
    made.folder.write(
        "run.json", json.dumps({"job": "coco", "config": given.model_dump(mode="json"), "steps": []}).encode()
    )
    with pytest.raises(UsageError, match=r"other classes .5 against 6"):
        build(config(project, coco=made.url))


def test_too_few_images_for_a_batch_and_splits_without_images_are_refused(project: Path, tmp_path: Path) -> None:
    job = build(config(project, training={"batch": 64}))
    with pytest.raises(UsageError, match="64 are needed"):
        job.sources["train"].list()
    described = json.loads((project / "coco/run.json").read_text())
    described["config"]["splits"]["val"]["images"] = None
    shutil.copytree(project / "coco", tmp_path / "coco")
    (tmp_path / "coco/run.json").write_text(json.dumps(described))
    with pytest.raises(UsageError, match="no image folder"):
        build(config(project, coco=str(tmp_path / "coco"))).sources["eval"].list()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"splits": {"eval": "train"}}, "no image may be in two"),
        ({"networks": []}, "networks"),
        ({"losses": ["focal", "focal"]}, "each loss once"),
        ({"losses": [], "baseline": False}, "nothing would be trained"),
        ({"losses": ["hinge"]}, "hinge"),
        ({"training": {"views": 3}}, "freeze"),
        ({"training": {"patience": 3, "monitor": None}}, "patience"),
        ({"training": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"evaluation": {"a": [0]}}, "above 0"),
        ({"training": {"augment": {"scale": [0.9, 0.2]}}}, "scale"),
    ],
)
def test_a_wrong_config_is_told(project: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(project, **values)
    assert words in str(caught.value)


def test_the_ready_made_config_is_the_papers_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCO_RUN", "/runs/coco")
    found = load_config(SemanticConfig, ROOT / "jobs/configs/semantic-coco2017.yaml")
    assert found.coco == "/runs/coco"
    assert [network.name for network in found.networks] == ["vgg16", "resnet34", "densenet121"]
    assert set(found.losses) == {"focal", "bce"}
    assert found.baseline
    assert found.report.paper
    assert (found.coarse_input, found.evaluation.threshold) == ("fine", 0.7)
