"""``raylens answer``: a trained run, an image, and colours of the user's own; made here without the engine."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from explorer_cases import drawn
from PIL import Image
from typer.testing import CliRunner

from jobs.asking import AskingConfig
from jobs.asking.gather import _steering
from jobs.asking.steer import Asked, answer, write
from jobs.asking.train import AskingTrainer
from jobs.cli import app
from jobs.config import check
from jobs.sections import source
from pipeline.checkpoints import CommittedCheckpoints, commit
from pipeline.errors import UsageError
from pipeline.run import Run
from stages.asking.agent import described, new_agent
from stages.asking.process import process
from stages.asking.steer import steer
from stages.asking.tasks import ColorNatural
from stages.asking.unet import UNetConfig
from stages.preprocess import Preprocess

TASK, NET, SIZE = ColorNatural(hints=3), UNetConfig(4, 2), (16, 12)
FRAME = Preprocess(SIZE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished training in a run folder, an image that was asked about, and one epoch's checkpoint."""
    root = tmp_path_factory.mktemp("steered")
    (root / "images").mkdir()
    Image.fromarray(drawn(24, 0)).save(root / "images/a.png")
    Image.fromarray(drawn(24, 1)).save(root / "b.png")
    (root / "text.png").write_text("no image")
    config = check(
        AskingConfig,
        {
            "task": "ask",
            "data": {
                "train": {"kind": "folder", "root": str(root)},
                "ask": {"kind": "folder", "root": str(root / "images")},
            },
            "learn": {"size": list(SIZE), "hints": 3},
            "network": {"width": 4, "depth": 2},
        },
        where="test",
    )
    found = Run(str(root / "run"))
    told = {"job": "asking", "config": config.model_dump(mode="json"), "steps": [], "provenance": {}}
    found.folder.write("run.json", json.dumps(told).encode())
    assert config.data.ask is not None
    found.freeze_keys("ask", source(config.data.ask))
    train = found.step_folder("train")
    train.write("training.json", json.dumps({"version": AskingTrainer.version}).encode())
    commit(
        train.child("result"),
        new_agent(TASK, NET, 1).to_files() | {"facts.json": json.dumps(described(TASK, NET)).encode()},
    )
    state = {f"model/agent.{name}": value for name, value in new_agent(TASK, NET, 2).state_dict().items()}
    files = {"state.safetensors": safetensors.torch.save(state), "state.json": b"{}"}
    CommittedCheckpoints(train.child("checkpoints")).save(7, files)
    return found


def shown(run: Run, name: str) -> torch.Tensor:
    path = Path(run.url).parent / name
    return torch.from_numpy(FRAME.pixels(np.asarray(Image.open(path))))[None]


def test_the_picture_is_that_of_the_users_answers(run: Run, tmp_path: Path) -> None:
    path = str(Path(run.url).parent / "b.png")
    found = answer(run.url, Asked(path, ("2=#c03020", " 1 = lab:50,20,-30")))
    expected = steer(new_agent(TASK, NET, 1), TASK, shown(run, "b.png"), {1: "lab:50,20,-30", 2: "#c03020"})
    write(found, str(tmp_path / "new/out.png"))
    picture = np.asarray(Image.open(tmp_path / "new/out.png"))
    assert np.array_equal(picture.transpose(2, 0, 1), expected.pictures[0, -1].numpy())
    lines = found.lines()
    assert re.fullmatch(r"without answers  [\d.]+ dB", lines[0])
    assert "(yours)" in lines[1]
    assert "(yours)" in lines[2]
    assert "(true)" in lines[3]
    exact = replace(found.found, psnr=torch.full_like(found.found.psnr, math.inf))
    assert replace(found, found=exact).lines()[0] == "without answers  no error", "as the sheets have it"


def test_the_sheet_stands_beside_that_of_true_answers(run: Run, tmp_path: Path) -> None:
    """The image is named by its key in the run, as the report has it."""
    out = tmp_path / "out.html"
    write(answer(run.url, Asked("a.png", ("3=red",))), str(out))
    text = out.read_text()
    assert text.count('<figure class="film">') == 2
    assert text.count(", yours") == 1
    plain = process(new_agent(TASK, NET, 1), TASK, shown(run, "images/a.png"), 3)
    told = re.findall(r"([\d.]+) dB", text)
    assert told[4:] == [f"{value:.1f}" for value in plain.psnr[0].tolist()]
    assert told[:3] == told[4:7], "up to the user's answer all is as it was"
    write(answer(run.url, Asked("a.png")), str(out))
    assert out.read_text().count('<figure class="film">') == 1


def test_a_checkpoint_and_more_questions_can_be_asked_for(run: Run) -> None:
    found = answer(run.url, Asked("a.png", hints=5, others="guess", checkpoint=7))
    expected = steer(new_agent(TASK, NET, 2), TASK, shown(run, "images/a.png"), {}, hints=5, others="guess")
    assert torch.equal(found.found.pictures, expected.pictures)
    assert len(found.lines()) == 6
    assert all("(its own guess)" in line for line in found.lines()[1:])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"answers": ["2=#c0302"]}, "answer to question 2: '#c0302' is no colour: give #c03020"),
        ({"answers": ["#c03020"]}, "'#c03020' is no answer\n  -> give QUESTION=COLOUR, the first question is 1"),
        ({"answers": ["one=red"]}, "'one=red' is no answer"),
        ({"answers": ["1="]}, "'1=' is no answer"),
        ({"answers": ["4=red"]}, "there is no question 4: they are 1 to 3; for more, give hints"),
        ({"answers": ["0=red"]}, "there is no question 0"),
        ({"answers": ["1=red", "01=blue"]}, "question 1 is answered twice"),
        ({"others": "liars"}, "--others: others are answered by 'truth' or 'guess', not 'liars'"),
        ({"hints": 99}, "--hints: there are no 99 questions\n  -> give 1 to 64"),
        ({"checkpoint": 3}, "there is no checkpoint 3\n  -> those kept: 7"),
        ({"image": "c.png"}, "c.png: the file does not exist\n  -> give an image's path or URL, or a key"),
    ],
)
def test_mistakes_are_told_by_name(run: Run, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        answer(run.url, Asked(**({"image": "a.png"} | given)))


def test_what_cannot_be_read_or_written_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text\.png"):
        answer(run.url, Asked(str(Path(run.url).parent / "text.png")))
    with pytest.raises(UsageError, match=re.escape("there is no form '.gif'\n  -> name a file that ends in .png")):
        write(answer(run.url, Asked("a.png")), str(tmp_path / "a.gif"))


def test_a_run_of_another_job_or_without_a_training_is_told(run: Run, tmp_path: Path) -> None:
    other = Run(str(tmp_path / "other"))
    other.folder.write("run.json", json.dumps({"job": "gfi", "config": {}, "steps": []}).encode())
    with pytest.raises(UsageError, match="is a run of 'gfi'"):
        answer(other.url, Asked("a.png"))
    begun = Run(str(tmp_path / "begun"))
    begun.folder.write("run.json", run.folder.read("run.json"))
    with pytest.raises(
        UsageError, match=r"its training is not finished\n  -> 'raylens asking CONFIG --run \S+ finishes it$"
    ):
        answer(begun.url, Asked("a.png"))
    CommittedCheckpoints(begun.step_folder("train").child("checkpoints")).save(4, {"state.json": b"{}"})
    with pytest.raises(UsageError, match="take its newest checkpoint: --checkpoint 4"):
        answer(begun.url, Asked("a.png"))


def another(run: Run, url: Path, task: str = "ask", **learn: Any) -> Run:
    """A run of the same configuration but for ``task`` and ``learn``; nothing is trained yet."""
    found = Run(str(url))
    told = json.loads(run.folder.read("run.json"))
    told["config"]["task"] = task
    told["config"]["learn"] |= learn
    found.folder.write("run.json", json.dumps(told).encode())
    return found


def test_what_was_trained_with_another_formula_is_not_misread(run: Run, tmp_path: Path) -> None:
    old = another(run, tmp_path / "old")
    train = old.step_folder("train")
    facts = {name: fact for name, fact in described(TASK, NET).items() if name != "question"}
    commit(train.child("result"), new_agent(TASK, NET, 1).to_files() | {"facts.json": json.dumps(facts).encode()})
    image = str(Path(run.url).parent / "b.png")
    with pytest.raises(UsageError, match="another formula for its questions: train again"):
        answer(old.url, Asked(image))
    state = {f"model/agent.{name}": value for name, value in new_agent(TASK, NET, 2).state_dict().items()}
    files = {"state.safetensors": safetensors.torch.save(state), "state.json": b"{}"}
    CommittedCheckpoints(train.child("checkpoints")).save(7, files)
    train.write("training.json", json.dumps({"version": AskingTrainer.version - 1}).encode())
    with pytest.raises(UsageError, match="another formula for its questions: train again"):
        answer(old.url, Asked(image, checkpoint=7))
    notes: list[str] = []
    assert _steering(old, {"b.png": shown(run, "b.png")[0].numpy()}, notes).scripts is None
    assert notes == [
        "The network cannot be answered on this page: the network was trained with another formula for its questions: "
        "train again"
    ]


@pytest.mark.parametrize("told", ["random", "none"])
def test_a_network_that_was_not_trained_to_ask_is_not_asked(run: Run, tmp_path: Path, told: str) -> None:
    other = another(run, tmp_path / "run", "train", told=told)
    with pytest.raises(UsageError, match=f"learn.told {told}: its questions mean nothing"):
        answer(other.url, Asked("a.png"))


@pytest.mark.parametrize("command", ["report {}", "answer {} a.png --out out.png"])
def test_a_config_that_an_older_version_took_is_told(run: Run, tmp_path: Path, command: str) -> None:
    old = another(run, tmp_path / "old")
    told = json.loads(old.folder.read("run.json"))
    masks = {"root": "drawn", "kind": "index"}
    told["config"]["data"]["segmented"] = {"images": told["config"]["data"]["train"], "masks": masks}
    old.folder.write("run.json", json.dumps(told).encode())
    done = CliRunner().invoke(app, command.format(old.url).split())
    assert (done.exit_code, done.stdout) == (2, "")
    mistake = "data: segmented.images are pictures that nothing was learnt from: neither train nor tune"
    assert done.stderr.startswith(f"raylens: config in {old.url}/run.json: {mistake}\n  -> another version of Raylens")


def test_without_images_to_ask_about_a_path_that_is_none_is_told(run: Run, tmp_path: Path) -> None:
    """The configuration names them, but a run of task train does not list them."""
    other = another(run, tmp_path / "run", "train")
    commit(
        other.step_folder("train").child("result"),
        new_agent(TASK, NET, 1).to_files() | {"facts.json": json.dumps(described(TASK, NET)).encode()},
    )
    with pytest.raises(UsageError, match=r"a\.png: the file does not exist\n  -> give an image's path"):
        answer(other.url, Asked("a.png"))


def test_from_the_command_line(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = CliRunner().invoke(app, ["answer", run.url, "a.png", "--answer", "1=#c03020", "--out", str(out)])
    assert done.exit_code == 0
    assert "answer 1  #" in done.stdout
    assert f"open {out}" in done.stdout
    assert Image.open(out).size == (12, 16)
    wrong = CliRunner().invoke(app, ["answer", run.url, "a.png", "--answer", "1=reddish", "--out", str(out)])
    assert wrong.exit_code == 2
    assert "'reddish' is no colour" in wrong.stderr
    early = CliRunner().invoke(app, ["answer", str(tmp_path / "no run"), "a.png", "--out", str(tmp_path / "x.gif")])
    assert early.exit_code == 2
    assert "there is no form '.gif'" in early.stderr
