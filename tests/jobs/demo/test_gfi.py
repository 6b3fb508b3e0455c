"""The demo's GFI and comparison: configs that a user could have written, within the demo's budget, after CHIP."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.demo.gfi import compare_config, gfi_config
from jobs.demo.run import PARTS, chip_config, network_section
from stages.gfi.recipe import RECIPES


def test_both_look_at_the_same_few_scenes_that_the_network_never_saw(tmp_path: Path) -> None:
    network = network_section(tmp_path)
    inverted, compared = gfi_config(tmp_path, network), compare_config(tmp_path, network)
    assert inverted.data.eval == compared.data.eval
    assert inverted.data.eval.sample == 24
    assert inverted.data.eval.images == str(tmp_path / "scenes/val")
    fitted = chip_config(tmp_path).data
    assert inverted.data.eval.images not in (fitted.fit.images, fitted.tune.images)


def test_chip_is_compared_by_the_weights_that_the_demo_has_solved_for_the_same_network(tmp_path: Path) -> None:
    compared = compare_config(tmp_path, network_section(tmp_path))
    assert {"chip", "gfi"} < set(compared.methods)
    assert compared.chip == str(tmp_path / "chip")
    assert compared.model == chip_config(tmp_path).model


@pytest.mark.parametrize("full", [False, True])
def test_the_full_demo_takes_the_papers_steps_and_every_scene(tmp_path: Path, full: bool) -> None:
    network = network_section(tmp_path)
    inverted, compared = gfi_config(tmp_path, network, full=full), compare_config(tmp_path, network, full=full)
    steps = (inverted.gfi.inversion_steps, inverted.gfi.class_steps)
    assert tuple(compared.parameters["gfi"]["steps"]) == steps  # the table's GFI is the run's
    assert (steps == RECIPES["paper"].steps) is full
    assert (inverted.data.eval.sample is None) is full


def test_the_parts_stand_in_the_order_in_which_they_stand_on_each_other() -> None:
    names = [name for name, _ in PARTS]
    places = [next(i for i, n in enumerate(names) if word in n) for word in ("training", "CHIP", "compared")]
    assert places == sorted(places)
    assert any("feature inversion" in name for name in names)
