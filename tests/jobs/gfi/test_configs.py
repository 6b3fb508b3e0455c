"""Every GFI config that comes with Raylens loads, and says what its experiment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config import load_config
from jobs.gfi import GfiConfig, build
from pipeline.errors import UsageError
from stages.preprocess import Preprocess

FOLDER = Path(__file__).parents[3] / "jobs/configs"
CONFIGS = sorted(path.name for path in FOLDER.glob("gfi-*.yaml"))


@pytest.fixture(autouse=True)
def _somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ILSVRC", "VOC", "MSRA", "DATA"):
        monkeypatch.setenv(name, f"/somewhere/{name.lower()}")


def config(name: str, *sets: str) -> GfiConfig:
    return load_config(GfiConfig, FOLDER / name, sets)


def test_there_is_one_for_every_experiment() -> None:
    assert set(CONFIGS) == {
        f"gfi-{name}.yaml"
        for name in (
            "vgg19-ilsvrc",
            "layers",
            "architectures",
            "adversarial",
            "inversion-only",
            "voc07-pointing",
            "msra",
            "squeezenet-ilsvrc",
        )
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_it_loads_and_is_commented(name: str) -> None:
    found = config(name)
    assert found.run == f"runs/{name.removesuffix('.yaml')}"
    assert (FOLDER / name).read_text().startswith("# ")
    # What a run records is read back by its report.
    assert GfiConfig.model_validate(found.model_dump(mode="json")) == found


def test_they_ask_what_the_protocol_asks() -> None:
    table1 = config("gfi-vgg19-ilsvrc.yaml")
    stage = table1.stage_config(Preprocess(frame="crop", resize=224))
    assert stage.recipe.steps == (10, 70)
    assert stage.alphas == tuple(i / 2 for i in range(21))
    assert stage.in_input
    assert config("gfi-voc07-pointing.yaml").stage_config(Preprocess()).recipe.delta == 10
    assert config("gfi-msra.yaml").stage_config(Preprocess()).recipe.steps == (10, 0)
    assert "five detectors of that figure are not reproduced" in (FOLDER / "gfi-msra.yaml").read_text()
    assert (table1.report.paper, config("gfi-voc07-pointing.yaml").report.paper) == (True, "pointing")
    assert config("gfi-adversarial.yaml").gfi.targets == ("label", "predicted")


def test_the_authors_preset_crops_as_their_code_does_unless_told_otherwise() -> None:
    squash = Preprocess()
    found = config("gfi-squeezenet-ilsvrc.yaml", "gfi.preset=authors").stage_config(squash).preprocess
    assert (found.frame, found.resize) == ("crop", 224)
    kept = config("gfi-squeezenet-ilsvrc.yaml", "gfi.preset=authors", "gfi.framing=model")
    assert kept.stage_config(squash).preprocess == squash
    assert config("gfi-squeezenet-ilsvrc.yaml").stage_config(squash).preprocess == squash


def test_mistakes_are_told_with_a_cure() -> None:
    for setting, told in (
        ("gfi.preset=theirs", "authors"),
        ("gfi.targets=[predicated]", "predicted, label, labels"),
        ("gfi.lamda=1", "gfi.lamda"),
        ("gfi.class_steps=-1", "class_steps"),
        ("gfi.alphas=[2,1]", "ascending"),
    ):
        with pytest.raises(UsageError, match=told):
            config("gfi-msra.yaml", setting)
    network = {
        "model.name=jobs.resnet20:cifar_resnet20",
        "model.weights=null",
        "model.seed=0",
        "model.preprocess.size=32",
    }
    with pytest.raises(UsageError, match="last_convv"):
        build(config("gfi-msra.yaml", *network, "gfi.mask_layer=last_convv"))
    with pytest.raises(UsageError, match="0 to 9"):
        build(config("gfi-msra.yaml", *network, "gfi.targets=[10]"))
