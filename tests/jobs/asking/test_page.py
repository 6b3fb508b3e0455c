"""The page that can be answered, opened from disk: its network is PyTorch's, and the pictures follow the reader."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorer_cases import chromium, drawn, opened
from torch import Tensor

from jobs.asking import page as page_module
from jobs.asking.page import EXACT_BYTES, multiplications, steering, too_large
from jobs.asking.report import AskingReportData
from jobs.asking.report import asking_page as page_of
from jobs.asking.sheet import Conversation
from stages.asking.agent import UNetAgent, new_agent
from stages.asking.colour import lab_to_rgb, rgb_to_lab, to_bytes
from stages.asking.paradigm import Task
from stages.asking.process import Process, process
from stages.asking.steer import steer
from stages.asking.tasks import ColorDrawing, ColorNatural, Inpaint
from stages.asking.unet import UNetConfig

browsing = pytest.mark.browser
DONE = "() => document.querySelector('.steer').getAttribute('aria-busy') === 'false'"


def written(folder: Path, task: Task, agent: UNetAgent, images: dict[str, np.ndarray]) -> Path:
    """The report's folder: what can be answered, and below it the sheets of the same conversations."""
    config = {
        "task": "ask",
        "learn": {"problem": task.name, "size": [1, 1], "frame": "squash"},
        "network": {"width": 1, "depth": 1},
    }
    made = steering("runs/mine", task, agent, images)
    (folder / "data").mkdir(parents=True)
    for name, content in (made.scripts or {}).items():
        (folder / name).write_bytes(content)
    sheets = [
        conversation(f"{'long_' * 9}{key}", process(agent, task, torch.from_numpy(image)[None], task.hints), image)
        for key, image in images.items()
    ]
    data = AskingReportData(run="runs/mine", config=config, provenance={}, examples=sheets, steering=made)
    return page_of(data).write(folder / "index.html")


def conversation(key: str, found: Process, truth: np.ndarray) -> Conversation:
    parts = (getattr(found, name)[0].numpy() for name in ("seen", "pictures", "questions", "colours"))
    return Conversation(key, *parts, truth, found.psnr[0].tolist())


@dataclass
class Made:
    task: Task
    agent: UNetAgent
    images: dict[str, np.ndarray]
    path: Path

    def plain(self, key: str) -> Process:
        return process(self.agent, self.task, self.pixels(key), self.task.hints)

    def pixels(self, key: str) -> Tensor:
        return torch.from_numpy(self.images[key])[None]


def agent_of(task: Task, config: UNetConfig, seed: int = 0) -> UNetAgent:
    """Untrained, but with norms that are not all alike, and with colours that go as far as a trained one's."""
    agent = new_agent(task, config, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, values in agent.state_dict().items():
        if values.ndim == 1:
            values += 0.3 * torch.randn(values.shape, generator=generator)
        if "head" in name:
            values *= 2
    return agent.requires_grad_(False).eval()


def make(folder: Path, task: Task, config: UNetConfig, height: int, width: int) -> Made:
    images = {
        f"{name}.png": np.ascontiguousarray(drawn(32, seed)[:height, :width].transpose(2, 0, 1))
        for seed, name in enumerate(("a", "b"))
    }
    agent = agent_of(task, config)
    return Made(task, agent, images, written(folder, task, agent, images))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Sides that the network has to pad, and widths that are no multiple of four."""
    return make(tmp_path_factory.mktemp("natural") / "page", ColorNatural(hints=3), UNetConfig(6, 3, most=17), 22, 19)


def turns(page: Any) -> list[dict[str, Any]]:
    """What the page's own network made of the image shown: y and question of each turn."""
    page.wait_for_function(DONE)
    told: list[dict[str, Any]] = page.evaluate(
        "held.page.talk.turns.map(t => ({y: [...t.y.values], question: [...t.question], psnr: t.psnr,"
        " answer: t.answer, colour: t.colour, picture: [...t.picture.data]}))"
    )
    return told


def same(page: Any, found: Process, agent_y: list[Tensor]) -> None:
    """Everything shown is what PyTorch has of this conversation."""
    shown = turns(page)
    assert len(shown) == found.pictures.shape[1]
    height, width = found.pictures.shape[-2:]
    for number, turn in enumerate(shown):
        np.testing.assert_allclose(np.array(turn["y"]), agent_y[number].flatten().numpy(), atol=1e-3)
        if number < found.questions.shape[1]:
            np.testing.assert_allclose(turn["question"], found.questions[0, number].flatten().numpy(), atol=1e-3)
        rgba = np.array(turn["picture"]).reshape(height, width, 4)
        levels = np.abs(rgba[..., :3] - found.pictures[0, number].permute(1, 2, 0).numpy().astype(int))
        assert levels.max() <= 1
        assert turn["psnr"] == pytest.approx(float(found.psnr[0, number]), abs=0.02)
        if number:
            np.testing.assert_allclose(turn["answer"], found.answers[0, number - 1].numpy(), atol=1e-4)
            np.testing.assert_allclose(255 * np.array(turn["colour"]), found.colours[0, number - 1].numpy(), atol=0.6)


def ys(made: Made, found: Process, key: str) -> list[Tensor]:
    """y of every turn of a conversation, from its questions and answers alone."""
    task, agent = made.task, made.agent
    x = task.observe(made.pixels(key) / 255)
    question, hint, y = (x.new_zeros(1, c, *x.shape[2:]) for c in (1, task.answered, task.produced))
    all_y = []
    for number in range(found.pictures.shape[1]):
        y, _ = agent(x, question, hint, y)
        all_y.append(y[0])
        if number < found.questions.shape[1]:
            question = found.questions[:, number : number + 1]
            hint = task.rule.hint(question, found.answers[:, number])
    return all_y


@browsing
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_network_of_the_page_is_that_of_the_run(browser: Any, made: Made, scheme: str) -> None:
    with opened(browser, made.path, color_scheme=scheme) as page:
        for key in ("a.png", "b.png"):
            page.locator(f".thumb[title='{key}']").click()
            found = made.plain(key)
            same(page, found, ys(made, found, key))
            told = page.locator(".steer .film li .frame .note").all_inner_texts()
            rates = [float(words.removesuffix(" dB")) for words in told]
            np.testing.assert_allclose(rates, found.psnr[0].numpy(), atol=0.05 + 0.02)  # rounded, and as in ``same``


@browsing
@pytest.mark.parametrize("task", [ColorDrawing(hints=2), Inpaint(hints=2, hole=0.4)], ids=lambda task: task.name)
def test_every_problem_runs_on_the_page(browser: Any, tmp_path: Path, task: Task) -> None:
    made = make(tmp_path / "page", task, UNetConfig(4, 2), 16, 16)
    with opened(browser, made.path) as page:
        found = made.plain("a.png")
        same(page, found, ys(made, found, "a.png"))
        page.get_by_label("Answer to question 1", exact=True).fill("#20a060")
        page.wait_for_function("() => held.page.talk.turns[1]?.own")
        found = steer(made.agent, task, made.pixels("a.png"), {1: "#20a060"})
        same(page, found, ys(made, found, "a.png"))


@browsing
def test_the_coloring_follows_the_readers_answer_and_the_true_one_comes_back(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.wait_for_function(DONE)
        frames = page.locator(".steer .film li")
        first, second = (
            page.get_by_label("Answer to question 1", exact=True),
            page.get_by_label("Answer to question 2", exact=True),
        )
        second.fill("#c03020")
        page.wait_for_function("() => held.page.talk.turns[2]?.own")
        found = steer(made.agent, made.task, made.pixels("a.png"), {2: "#c03020"})
        same(page, found, ys(made, found, "a.png"))
        assert not torch.equal(found.pictures, made.plain("a.png").pictures)
        assert "own" in frames.nth(3).get_attribute("class")
        assert "1 of 3 answers are yours" in page.locator("[role=status]").inner_text()
        first.fill("#2040c0")  # the second stays the reader's, told to what is asked now
        page.wait_for_function("() => held.page.talk.turns[1]?.own")
        found = steer(made.agent, made.task, made.pixels("a.png"), {1: "#2040c0", 2: "#c03020"})
        same(page, found, ys(made, found, "a.png"))
        # Another image has its own conversation, and this one is kept.
        page.locator(".thumb[title='b.png']").click()
        same(page, made.plain("b.png"), ys(made, made.plain("b.png"), "b.png"))
        page.locator(".thumb[title='a.png']").click()
        same(page, found, ys(made, found, "a.png"))
        page.get_by_label("True answer to question 1 again").click()
        page.wait_for_function("() => held.page.talk.turns[1]?.own === false")
        found = steer(made.agent, made.task, made.pixels("a.png"), {2: "#c03020"})
        same(page, found, ys(made, found, "a.png"))
        page.get_by_role("button", name="All answers true again").click()
        page.wait_for_function("() => !held.page.talk.own.size")
        same(page, made.plain("a.png"), ys(made, made.plain("a.png"), "a.png"))
        assert page.get_by_role("button", name="All answers true again").is_disabled()


@browsing
def test_by_keys_alone_and_everything_has_a_name(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.wait_for_function(DONE)
        page.locator(".thumb input").first.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("() => held.page.number === 1")
        page.wait_for_function(DONE)
        page.get_by_label("Answer to question 1", exact=True).focus()
        before = page.evaluate("held.page.talk.turns[1].answer.join()")
        page.get_by_label("Answer to question 1", exact=True).fill("#118833")
        page.wait_for_function("() => held.page.talk.turns[1]?.own")
        page.wait_for_function(DONE)
        assert page.evaluate("held.page.talk.turns[1].answer.join()") != before
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "True answer to question 1 again"
        page.keyboard.press("Enter")
        page.wait_for_function("() => held.page.talk.turns[1]?.own === false")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Answer to question 1"
        labels = page.locator(".steer .film canvas").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
        assert labels[:3] == [
            "what the network sees",
            "the picture without answers",
            "what is asked as question 1: bright where it asks",
        ]
        assert all(labels)
        page.wait_for_function(DONE)


@browsing
def test_the_page_is_usable_on_a_phone(browser: Any, made: Made) -> None:
    with opened(browser, made.path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.wait_for_function(DONE)
        box = page.get_by_label("Answer to question 3", exact=True).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert min(box["width"], box["height"]) >= 36


@browsing
def test_a_newer_answer_ends_the_computing_of_an_older_one(browser: Any, made: Made) -> None:
    """Both are told before the page could compute either."""
    with opened(browser, made.path) as page:
        page.wait_for_function(DONE)
        page.evaluate("['#102030', '#405060', '#c03020'].forEach(hex => held.page.tell(0, hex))")
        found = steer(made.agent, made.task, made.pixels("a.png"), {1: "#c03020"})
        page.wait_for_function("() => held.page.talk.turns.length === 4")
        same(page, found, ys(made, found, "a.png"))


@browsing
def test_colours_are_converted_as_in_python(browser: Any, made: Made) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.002, 0.04, 0.5, 1.0], dtype=torch.float64)] * 3)
    rgb = torch.cat([torch.rand(300, 3, generator=generator, dtype=torch.float64), corners])
    wide = torch.rand(300, 3, generator=generator, dtype=torch.float64) * torch.tensor([100.0, 220, 220])
    wide = wide - torch.tensor([0.0, 110, 110], dtype=torch.float64)  # many of them no colours of sRGB
    lab = rgb_to_lab(rgb.T[None, :, :, None])[0, :, :, 0].T
    with opened(browser, made.path) as page:
        page.wait_for_function(DONE)
        np.testing.assert_allclose(page.evaluate("all => all.map(labOf)", rgb.tolist()), lab.numpy(), atol=1e-6)
        np.testing.assert_allclose(page.evaluate("all => all.map(rgbOf)", lab.tolist()), rgb.numpy(), atol=1e-4)
        given = lab_to_rgb(wide.T[None, :, :, None])[0, :, :, 0].T
        np.testing.assert_allclose(page.evaluate("all => all.map(rgbOf)", wide.tolist()), given.numpy(), atol=1e-9)
        hexes = page.evaluate("all => all.map(hexOf)", given.tolist())
        levels = [[int(h[i : i + 2], 16) for i in (1, 3, 5)] for h in hexes]
        np.testing.assert_allclose(levels, to_bytes(given).numpy(), atol=1)
        assert page.evaluate("rgbFrom('#c03020').map(v => 255 * v)") == pytest.approx([192, 48, 32])


@browsing
def test_a_larger_network_travels_in_24_bits_and_the_page_says_so(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "EXACT_BYTES", 1000)
    made = make(tmp_path / "page", ColorNatural(hints=2), UNetConfig(8, 2), 16, 16)
    with opened(browser, made.path) as page:
        assert "rounded to 24 bits" in page.locator("#answer-it-yourself").inner_text()
        same(page, made.plain("a.png"), ys(made, made.plain("a.png"), "a.png"))
        largest = page.evaluate("Math.max(...[...held.agent.weights.values()].map(v => Math.max(...v.map(Math.abs))))")
        assert largest == pytest.approx(max(float(v.abs().max()) for v in made.agent.state_dict().values()), rel=2**-16)


@browsing
def test_of_one_image_there_is_nothing_to_choose(browser: Any, tmp_path: Path) -> None:
    task, image = ColorNatural(hints=1), np.ascontiguousarray(drawn(8, 0).transpose(2, 0, 1))
    with opened(browser, written(tmp_path / "page", task, agent_of(task, UNetConfig(4, 2)), {"a.png": image})) as page:
        page.wait_for_function(DONE)
        assert page.locator(".images").is_hidden()


def test_what_is_too_large_for_a_page_is_said_with_what_to_do() -> None:
    task, image = ColorNatural(), np.zeros((3, 128, 128), np.uint8)
    assert too_large(task, new_agent(task, UNetConfig()), (128, 128)) == ""  # the job's defaults
    slow = steering("runs/mine", task, new_agent(task, UNetConfig()), {"a": np.zeros((3, 256, 256), np.uint8)})
    assert slow.scripts is None
    assert "a step takes 14.0 · 10⁹ multiplications" in slow.refusal
    assert "raylens answer runs/mine IMAGE --answer" in slow.refusal
    heavy = steering("runs/mine", task, new_agent(task, UNetConfig(width=48)), {"a": image})
    assert "its weights are 38.8 MB" in heavy.refusal
    assert "its weights" in page_module.steering_section(heavy).blocks[0].text  # type: ignore[union-attr]


@dataclass(frozen=True)
class Louder(ColorNatural):
    name: str = "louder"


def test_a_task_that_the_page_does_not_know_is_refused_by_name() -> None:
    task = Louder()
    found = steering("runs/mine", task, new_agent(task, UNetConfig(4, 2)), {"a": np.zeros((3, 8, 8), np.uint8)})
    assert "it has no task louder" in found.refusal
    assert page_module.steering_section(steering("r", task, new_agent(task, UNetConfig(4, 2)), {})) is None


def test_multiplications_are_counted_by_hand() -> None:
    """One resolution of 3 channels at 5 x 4: 6 -> 3 -> 3 by 3 x 3, then 3 -> 3 by 1 x 1."""
    task = ColorNatural()
    agent = new_agent(task, UNetConfig(3, 1))
    assert multiplications(task, agent, (5, 4)) == 20 * (9 * (6 * 3 + 3 * 3) + 3 * 3)


def test_weights_travel_as_they_are() -> None:
    task = ColorNatural()
    agent = agent_of(task, UNetConfig(4, 2))
    found = steering("r", task, agent, {"a/b.png": np.zeros((3, 8, 8), np.uint8)})
    assert found.scripts is not None
    facts = json.loads(found.scripts["data/agent.js"].decode()[len('raylens("agent", ') : -3])
    numbers = np.frombuffer(base64.b64decode(facts["numbers"]), "<f4")
    whole = torch.cat([values.flatten() for values in agent.state_dict().values()])
    assert np.array_equal(numbers, whole.numpy())
    assert facts["kind"] == "float32"
    assert whole.numel() * 4 < EXACT_BYTES
    (image,) = json.loads(found.scripts["data/images.js"].decode()[len('raylens("images", ') : -3])
    assert (image["key"], image["name"]) == ("a/b.png", "b")
