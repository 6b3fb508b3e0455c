"""The demo's linear interpreters: configs that a user could have written, on scenes the network never saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.demo.linear import linear_config
from jobs.demo.run import PARTS, chip_config, network_section


@pytest.mark.parametrize("full", [False, True])
def test_scenes_are_few_and_unseen_and_the_full_demo_takes_more(tmp_path: Path, full: bool) -> None:
    network = network_section(tmp_path)
    layers, votes = (linear_config(tmp_path, network, task, full=full) for task in ("layers", "votes"))
    fitted = chip_config(tmp_path).data
    for found in (layers, votes):
        assert found.networks == {"demo": chip_config(tmp_path).model}
        assert found.data.images.images not in (fitted.fit.images, fitted.tune.images)
        assert found.classify.attack == 8
    assert (layers.data.images.sample is None) is full
    assert votes.classify.classes == 0  # all of its few classes stand for election
    assert (votes.data.images.sample > 10) is full


def test_they_come_after_the_network_they_interpret() -> None:
    names = [name for name, _ in PARTS]
    places = [next(i for i, n in enumerate(names) if word in n) for word in ("training", "layers add", "pixel")]
    assert places == sorted(places)
