"""Config: strict, and every mistake names the field, the value and the nearest valid name."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from jobs.config import JobConfig, Location, LocationOrName, Section, load_config
from pipeline.errors import UsageError


class Folder(Section):
    kind: Literal["folder"] = "folder"
    path: Location


class Listed(Section):
    kind: Literal["list"]
    file: Location
    columns: dict[str, str] = Field(default_factory=dict)


class Sweep(Section):
    gates: int = Field(default=100, ge=1)
    classes: Literal["coverage", "all"] = "coverage"
    layers: tuple[str, ...] = ("last_conv",)
    shares: list[float] = Field(default_factory=list)


class Config(JobConfig):
    data: dict[str, Annotated[Folder | Listed, Field(discriminator="kind")]]
    weights: LocationOrName = "DEFAULT"
    sweep: Sweep = Sweep()


GOOD = "data: {fit: {kind: folder, path: images}}\n"


def loaded(tmp_path: Path, text: str, *sets: str) -> Config:
    (tmp_path / "c.yaml").write_text(text)
    return load_config(Config, tmp_path / "c.yaml", sets)


def refused(tmp_path: Path, text: str, *sets: str) -> str:
    with pytest.raises(UsageError) as told:
        loaded(tmp_path, text, *sets)
    assert told.value.exit_code == 2
    return str(told.value)


def test_defaults_and_values(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD + "seed: 3\nsweep: {gates: 7, shares: [1e-3, 1.5E2, .5]}\n")
    assert (config.seed, config.sweep.gates, config.sweep.classes) == (3, 7, "coverage")
    assert config.sweep.shares == [0.001, 150.0, 0.5]  # 1e-3 is a number here, though not in YAML 1.1
    assert config.allow_failed == 0
    assert config.images.max_megapixels == 100
    assert config.resources.mode == "auto"


def test_config_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded(tmp_path, GOOD).seed = 4  # type: ignore[misc]


def test_settings_override_the_file_in_order(tmp_path: Path) -> None:
    sets = ("seed=2", "seed=3", "sweep.layers=[a, b]", "sweep.shares.1=1e-2", "resources.cpus=2", "label=a name")
    config = loaded(tmp_path, GOOD + "sweep: {shares: [5, 6]}\n", *sets, "data.val={kind: folder, path: v}")
    assert (config.seed, config.resources.cpus, config.label) == (3, 2, "a name")
    assert config.sweep.layers == ("a", "b")
    assert config.sweep.shares == [5, 0.01]
    assert set(config.data) == {"fit", "val"}


def test_values_from_the_command_line_are_plain_values(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD, "label=x", "weights=w.pth", "sweep.layers=[a]")
    assert type(config.label) is type(config.weights) is type(config.sweep.layers[0]) is str
    json.dumps(config.model_dump())


@pytest.mark.parametrize(
    ("text", "sets", "told"),
    [
        ("sweep: {gatse: 3}", (), "unknown field sweep.gatse = 3; did you mean 'gates'?"),
        ("", ("sweep.gatse=3",), "unknown field sweep.gatse = 3; did you mean 'gates'? (from --set sweep.gatse=3)"),
        ("sed: 3", (), "unknown field sed = 3; did you mean 'seed'?"),
        ("resources: {adress: x}", (), "unknown field resources.adress = 'x'; did you mean 'address'?"),
        ("images: {xyz: x}", (), "the fields here are"),
        ("sweep: {gates: many}", (), "sweep.gates: 'many' is text, expected a whole number"),
        ("sweep: {gates: 1.5}", (), "sweep.gates: 1.5 is a number, expected a whole number"),
        ("sweep: {gates: [1]}", (), "sweep.gates: [1] is a list, expected a whole number"),
        ("sweep: {gates: 0}", (), "sweep.gates: 0: should be greater than or equal to 1"),
        ("sweep: {gates: yes}", (), "sweep.gates: true is true or false, expected a number"),
        ("seed: true", (), "seed: true is true or false, expected a number"),
        ("sweep: {classes: al}", (), "sweep.classes: 'al' is not one of coverage, all; did you mean 'all'?"),
        ("sweep: {layers: x}", (), "sweep.layers: 'x' is text, expected a list"),
        ("sweep: {shares: [1, x]}", (), "sweep.shares.1: 'x' is text, expected a number"),
        ("sweep: 3", (), "sweep: 3 is a whole number, expected a mapping of fields"),
        ("label: 3", (), "label: 3 is a whole number, expected text"),
        ("allow_failed: 2", (), "allow_failed: 2: should be less than or equal to 1"),
        ("resources: {mode: Inline}", (), "did you mean 'inline'?"),
        ("", ("seed.x=1",), "seed"),
        ("seed: 1", ("seed.x=1",), "'seed' is a whole number, so it has no field 'x'"),
        ("sweep: {shares: [1]}", ("sweep.shares.7=1",), "'sweep.shares' is a list of 1"),
        ("", ("seed",), "write it as field.name=value"),
        ("", ("=3",), "write it as field.name=value"),
        ("", ("sweep..gates=3",), "write it as field.name=value"),
        ("", ("seed=[1",), "--set seed"),
    ],
)  # fmt: skip
def test_mistake_is_told_by_field_value_and_nearest_name(
    tmp_path: Path, text: str, sets: tuple[str, ...], told: str
) -> None:
    assert told in refused(tmp_path, GOOD + text, *sets)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {fit: {kind: foldr, path: x}}", "kind 'foldr' is not one of folder, list; did you mean 'folder'?"),
        ("data: {fit: {path: x}}", "data.fit: 'kind' is required and absent"),
        ("data: {fit: {kind: folder}}", "data.fit.path: is required and absent"),
        ("data: {fit: {kind: folder, path: x, pth: y}}", "unknown field data.fit.pth = 'y'; did you mean 'path'?"),
        ("data: {fit: {kind: list, file: x, columns: {a: 3}}}", "data.fit.columns.a: 3 is a whole number"),
        ("data: {fit: folder}", "data.fit: 'folder'"),
        ("", "data: is required and absent"),
        ("data: 3", "data: 3 is a whole number, expected a mapping of fields"),
    ],
)  # fmt: skip
def test_mistake_inside_a_union_is_told_without_its_machinery(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = refused(tmp_path, GOOD + "sed: 1\nsweep: {gates: a, classes: b}\n")
    assert "3 mistakes:" in text
    assert all(name in text for name in ("sed", "sweep.gates", "sweep.classes"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\na: [1\nb: 2\n", "c.yaml, line 3"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: YAML: 'seed' is given twice"),
        ("[1, 2]", "a config is a mapping of fields, not a list"),
        ("just words", "not text"),
        ("a: !!python/object/apply:os.system [ls]", "YAML"),
        ("a: &a [*a]", "c.yaml"),
        ("\t- x", "line 1"),
        ("a: \x00", "c.yaml"),
    ],
)
def test_bad_yaml_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(tmp_path, text)


def test_missing_binary_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "chip-folder.yaml").write_text(GOOD)
    for path, told in (
        (tmp_path / "chip-foldr.yaml", "did you mean '" + str(tmp_path / "chip-folder.yaml")),
        (tmp_path / "no" / "c.yaml", "there is no such config file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "chip-folder.yaml" / "x", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=re.escape(told)):
            load_config(Config, path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        load_config(Config, tmp_path / "b.yaml")


def test_paths_are_relative_to_the_config_and_those_of_the_shell_to_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("DATA", "/big/data")
    monkeypatch.setenv("HOME", "/home/me")
    text = """
weights: ../nets/w.safetensors
data:
  relative: {kind: folder, path: images}
  above: {kind: folder, path: ../images}
  absolute: {kind: folder, path: /images}
  url: {kind: folder, path: "s3://bucket/images"}
  variable: {kind: folder, path: "${DATA}/images"}
  home: {kind: folder, path: ~/images}
  shell: {kind: folder, path: x}
"""
    config = loaded(tmp_path / "conf", text, "data.shell.path=images", "run=runs/one")
    paths = {name: split.path for name, split in config.data.items() if isinstance(split, Folder)}
    assert paths == {
        "relative": str(tmp_path / "conf" / "images"),
        "above": str(tmp_path / "images"),
        "absolute": "/images",
        "url": "s3://bucket/images",
        "variable": "/big/data/images",
        "home": "/home/me/images",
        "shell": "images",
    }
    assert config.weights == str(tmp_path / "nets" / "w.safetensors")
    assert config.run == "runs/one"


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
def test_name_of_weights_is_no_path(tmp_path: Path, name: str) -> None:
    assert loaded(tmp_path, GOOD + f"weights: {name}\n").weights == name


def test_unset_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    text = refused(tmp_path, "data: {fit: {kind: folder, path: '${NOPE}/x'}}")
    assert "data.fit.path: '${NOPE}/x': the environment variable NOPE is not set" in text


def test_options_carry_what_the_config_says(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD + "allow_failed: 0.1\nresources: {cpus: 2, mode: inline, shard_rows: 16}\n")
    options = config.options(only=("solve",), code_path=("/x",))
    assert (options.resources.cpus, options.resources.mode, options.resources.shard_rows) == (2, "inline", 16)
    assert (options.allow_failed, options.only, options.code_path) == (0.1, ("solve",), ("/x",))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_a_config_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError):  # "data" is required, so nothing that short is good
        load_config(Config, path, ["seed=1"])
    assert os.path.exists(path)
