"""The sweep against a loop of plain forwards, one perturbed network at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.chip.gates import checksums, draw_gates, gate_seeds
from stages.chip.sweep import ChipSweep, SweepConfig
from stages.preprocess import Preprocess

SIZE, CLASSES = 16, 12
PREPROCESS = Preprocess(size=(SIZE, SIZE))
CPU = torch.device("cpu")


class Small(nn.Module):
    """Three convolutions, a residual sum and a norm: one layer of each path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 20, 3, padding=1)
        self.fc = nn.Linear(20 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        y = self.relu(self.norm(self.second(x)))
        y += x
        y = self.relu(self.last(F.max_pool2d(y, 2)))
        return self.fc(F.adaptive_avg_pool2d(y, 2).flatten(1))


LAYERS = ("first_conv", "add", "last_conv")
HOOKED = {"first_conv": ("relu", 0), "last_conv": ("relu", 2)}  # module and its call; "add" is gated by hand


def small(double: bool = True, scale: float = 6.0) -> Small:
    torch.manual_seed(0)
    network = Small()
    nn.init.normal_(network.norm.bias)
    nn.init.uniform_(network.norm.running_mean)
    with torch.no_grad():
        network.fc.weight.mul_(scale)  # some classes clearly likelier than others
        network.last.weight.mul_(4)
    return (network.double() if double else network).eval()


def sweep(network: nn.Module, **fields: Any) -> ChipSweep:
    fields = {"layers": LAYERS, "gates": 9, "seed": 4, "preprocess": PREPROCESS, **fields}
    stage = ChipSweep(SweepConfig(**fields))
    stage.setup(CPU, {"network": network})
    return stage


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def batch(
    pixels: np.ndarray, labels: list[int | None] | None = None, valid: list[bool] | None = None
) -> dict[str, Any]:
    count = len(pixels)
    labels = labels or [3] * count
    keys = [f"image {i}" for i in range(count)]
    mask = np.array(valid or [True] * count)
    rows = [{"key": k, "label": v} if m else None for k, v, m in zip(keys, labels, mask, strict=True)]
    keys = [k if m else "" for k, m in zip(keys, mask, strict=True)]
    return {"key": keys, "split": "fit", "valid": mask, "rows": rows, "pixels": pixels}


def gated_forward(network: Small, layer: str, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """One image, one gate, one whole forward pass."""
    gate = gate.to(x)[None, :, None, None]
    if layer == "add":
        y = network.relu(network.stem(x))
        y = (network.relu(network.norm(network.second(y))) + y) * gate
        y = network.relu(network.last(F.max_pool2d(y, 2)))
        return network.fc(F.adaptive_avg_pool2d(y, 2).flatten(1))
    name, wanted = HOOKED[layer]
    calls = iter(range(99))
    hook = lambda m, a, out: out * gate if next(calls) == wanted else out  # noqa: E731
    handle = getattr(network, name).register_forward_hook(hook)
    out = network(x)
    handle.remove()
    return out


@pytest.mark.parametrize("output", ["softmax", "logits"])
@pytest.mark.parametrize("copies", [0, 1, 4, 20])
def test_the_sweep_is_a_loop_of_plain_forwards(output: str, copies: int) -> None:
    network = small()
    stage = sweep(network, output=output, copies=copies, classes="all")
    pixels, labels = images(3), [3, None, 7]
    x = PREPROCESS.normalise(torch.from_numpy(pixels))
    keys = ["a", "b", "c"]
    measured = stage.measure(x, keys, "fit", labels)
    with torch.no_grad():
        for i, key in enumerate(keys):
            image = x[i : i + 1].double()
            f = network(image).softmax(1)[0]
            assert torch.allclose(measured.f[i], f, rtol=0, atol=1e-12)
            for layer in LAYERS:
                channels = 20 if layer == "last_conv" else 8
                gates = draw_gates(gate_seeds(4, "fit", [key], layer), 9, channels)[0]
                for n, gate in enumerate(gates):
                    g = gated_forward(network, layer, image, gate)[0]
                    g = g.softmax(0) if output == "softmax" else g
                    assert torch.allclose(measured.g[layer][i, n], g, rtol=1e-11, atol=1e-12), (layer, n)


def test_all_open_gates_give_f_in_the_rows_own_type() -> None:
    for double, tolerance in ((True, 1e-12), (False, 1e-5)):
        stage = sweep(small(double), classes="all")
        x = PREPROCESS.normalise(torch.from_numpy(images(2)))
        f = stage.measure(x, ["a", "b"], "fit").f
        network = stage.cut
        assert network is not None
        with torch.no_grad():
            activations = network.prefix(x.double() if double else x)
            for layer, found in network.layers.items():
                gates = torch.ones(2, 3, found.channels, dtype=torch.bool)
                g = stage._perturbed(layer, activations, gates, stage._classes(f, None))
                assert ((g - f[:, None]).abs() / f[:, None]).max() < tolerance


def test_rows_have_the_schema_and_the_pooled_activation() -> None:
    network = small(double=False)
    stage = sweep(network)
    rows = stage(batch(images()))
    table = pa.Table.from_pylist(rows, schema=stage.schema)
    assert table.num_rows == 4
    assert {f.metadata[b"shape"] for f in stage.schema if f.name.startswith("g/")} == {b"[gates, classes]"}
    x = PREPROCESS.normalise(torch.from_numpy(images()))
    with torch.no_grad():
        last = torch.relu(
            network.last(
                F.max_pool2d(network.relu(network.norm(network.second(y := network.relu(network.stem(x))))) + y, 2)
            )
        )
    for i, row in enumerate(rows):
        assert np.allclose(row["a/last_conv"], last[i].mean((1, 2)), rtol=1e-5, atol=1e-6)
        assert len(row["g/last_conv"]) == 9 * len(row["classes"])
        seeds = gate_seeds(4, "fit", [f"image {i}"], "last_conv")
        assert row["gates/last_conv"] == checksums(draw_gates(seeds, 9, 20))[0]


def test_coverage_keeps_likely_classes_and_always_the_label() -> None:
    everything = sweep(small(), classes="all")(batch(images(8), [0, 1, 2, None, 4, 5, 6, None]))
    for floor, most in ((0.01, 16), (0.2, 16), (0.0, 3), (0.02, 1)):
        chosen = sweep(small(), min_share=floor, max_classes=most)(batch(images(8), [0, 1, 2, None, 4, 5, 6, None]))
        for whole, part in zip(everything, chosen, strict=True):
            f, label = whole["f"], part["label"]
            ranked = sorted(range(CLASSES), key=lambda c: (c != label, -f[c]))  # the label first
            expected = sorted(
                c for i, c in enumerate(ranked[:most]) if f[c] >= floor or c == label or (label is None and i == 0)
            )
            assert part["classes"].tolist() == expected
            assert np.allclose(part["f"], f[expected], atol=1e-7)
            assert part["lost_mass"] == pytest.approx(1 - f[expected].sum(), abs=1e-6)
            for layer in LAYERS:
                mine = part[f"g/{layer}"].reshape(9, -1)
                assert np.allclose(mine, whole[f"g/{layer}"].reshape(9, CLASSES)[:, expected], atol=1e-7)
    assert all(abs(row["lost_mass"]) < 1e-6 for row in everything)


def test_several_layers_in_one_pass_are_each_layer_alone() -> None:
    together = sweep(small())(batch(images()))
    for layer in LAYERS:
        alone = sweep(small(), layers=(layer,))(batch(images()))
        for one, many in zip(alone, together, strict=True):
            for column in (f"a/{layer}", f"g/{layer}", f"gates/{layer}", "classes", "f"):
                assert np.allclose(one[column], many[column], rtol=1e-6, atol=0), column


def test_an_image_does_not_know_its_neighbours() -> None:
    stage = sweep(small())
    pixels = images()
    whole = stage(batch(pixels))
    for i in range(4):
        one = batch(pixels)
        one = {k: (v if k == "split" else v[i : i + 1]) for k, v in one.items()}
        (row,) = stage(one)
        for name, value in row.items():
            assert np.allclose(value, whole[i][name], rtol=1e-6, atol=1e-9), name
    padded = stage(batch(np.concatenate([pixels[:2], np.zeros_like(pixels[:2])]), valid=[True, True, False, False]))
    other = stage(batch(np.concatenate([pixels[:2], pixels[2:]]), valid=[True, True, False, False]))
    assert len(padded) == len(other) == 2
    for a, b in zip(padded, other, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a), "padding changes not one bit"


def test_two_runs_give_the_same_bytes_and_another_seed_other_gates() -> None:
    first, again = (sweep(small(double=False))(batch(images())) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    other = sweep(small(double=False), seed=5)(batch(images()))
    assert all(a["gates/last_conv"] != b["gates/last_conv"] for a, b in zip(first, other, strict=True))
    assert len({r["gates/last_conv"] for r in first}) == 4, "every image has its own gates"


def test_shared_gates_are_one_set_for_all_images_and_splits() -> None:
    stage = sweep(small(), shared_gates=True, classes="all")
    rows = stage(batch(images()))
    assert len({r["gates/last_conv"] for r in rows}) == 1
    assert len({r[f"gates/{layer}"] for layer in LAYERS for r in rows[:1]}) == 3
    gates = draw_gates(gate_seeds(4, "", [""], "last_conv", shared=True), 9, 20)
    assert rows[0]["gates/last_conv"] == checksums(gates)[0]
    network, x = small(), PREPROCESS.normalise(torch.from_numpy(images())).double()
    with torch.no_grad():
        g = gated_forward(network, "last_conv", x[2:3], gates[0, 4]).softmax(1)[0]
    assert np.allclose(rows[2]["g/last_conv"].reshape(9, CLASSES)[4], g, atol=1e-7)


def test_out_of_memory_halves_the_copies_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    expected = sweep(small())(batch(images()))
    stage = sweep(small())
    assert stage.cut is not None
    real, sizes = stage.cut.gated, []

    def little_memory(layer: str, activations: Any, gates: torch.Tensor) -> torch.Tensor:
        sizes.append(gates.shape[0] * gates.shape[1])
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("no room")
        return real(layer, activations, gates)

    stage.cut.gated = little_memory  # type: ignore[method-assign]
    got = stage(batch(images()))
    for a, b in zip(got, expected, strict=True):
        for name in a:
            assert np.allclose(a[name], b[name], rtol=1e-6, atol=1e-9)
    assert max(sizes) > 5
    assert "gated copies at once" in caplog.text
    before = len(sizes)
    stage(batch(images()))
    assert max(sizes[before:]) <= 5, "and it stays halved to the end of the shard"
    assert stage.notes == [text for text in caplog.messages if "out of memory" in text] != []
    assert stage.notes[0].startswith("out of memory at ")
    before = len(sizes)
    stage.begin()
    assert stage.notes == []
    stage(batch(images()))
    assert max(sizes[before:]) > 5, "the next shard has its full room again"

    def none(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room at all")

    stage.cut.gated = none  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        stage(batch(images()))


def test_bfloat16_is_close_and_says_so_in_its_config() -> None:
    plain = sweep(small(double=False), classes="all")(batch(images()))
    half = sweep(small(double=False), classes="all", precision="bfloat16")(batch(images()))
    for a, b in zip(plain, half, strict=True):
        assert np.abs(a["f"] - b["f"]).max() < 0.1
        for layer in LAYERS:
            assert 0 < np.abs(a[f"g/{layer}"] - b[f"g/{layer}"]).max() < 0.1
            assert a[f"gates/{layer}"] == b[f"gates/{layer}"]


def test_a_network_that_overflows_fails_its_rows_alone() -> None:
    network = small()
    pixels = images(2)
    pixels[1] = 0
    with torch.no_grad():  # a black image gives infinity, the other does not
        black = PREPROCESS.normalise(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).double()
        stage = sweep(network)
        assert stage.cut is not None
        real = stage.cut.logits
        level = float(network(black)[0, 0])

        def logits(activations: Any) -> torch.Tensor:
            out = real(activations)
            out[(out[:, 0] - level).abs() < 1e-9] = float("nan")
            return out

        stage.cut.logits = logits  # type: ignore[method-assign]
    good, bad = stage(batch(pixels))
    assert bad["status"] == "failed"
    assert "not finite" in bad["error"]
    assert "status" not in good
    assert good["label"] == 3


def test_cost_counts_operations_and_networks() -> None:
    stage = sweep(small(), gates=50)
    cost = stage.cost()
    assert cost["networks_per_row"] == 150
    assert stage.cut is not None
    expected = stage.cut.operations("last_conv").plain
    for layer in LAYERS:
        count = stage.cut.operations(layer)
        expected += count.once + 50 * min(count.each, count.suffix)
    assert cost["flops_per_row"] == pytest.approx(expected)
    assert 1 + 50 * 0.3 < cost["forwards_per_row"] < 1 + 150
    with pytest.raises(RuntimeError, match="setup"):
        ChipSweep(SweepConfig()).cost()
    assert stage.micro_batch(CPU) == 8
    assert ChipSweep(dataclasses.replace(stage.config, batch=5)).micro_batch(CPU) == 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": ()}, "sweep.layers"),
        ({"layers": ("a", "a")}, "sweep.layers"),
        ({"gates": 0}, "sweep.gates"),
        ({"classes": "some"}, "sweep.classes"),
        ({"output": "prob"}, "sweep.output"),
        ({"precision": "int8"}, "sweep.precision"),
        ({"max_classes": 0}, "max_classes"),
    ],
)
def test_impossible_settings_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SweepConfig(**fields)


def test_a_label_of_another_label_set_is_told() -> None:
    with pytest.raises(ValueError, match="label 12 of a network with 12 classes"):
        sweep(small())(batch(images(1), [12]))


def test_prepare_gives_the_frame_of_the_config() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    prepared = ChipSweep(SweepConfig(preprocess=PREPROCESS)).prepare(image, {})
    assert np.array_equal(prepared["pixels"], PREPROCESS.pixels(image))
