"""The part of an asking job's page that answers its reader: the network itself, in plain JavaScript beside the page.

A page opened from disk may not fetch, but it may load scripts: the weights and a few images are two of them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.explorer.chunks import script, text
from jobs.report.parts import scripts, short_names
from jobs.show import size
from pipeline.report.blocks import Mount, Paragraph, Section
from stages.asking.agent import FORMULA, UNetAgent
from stages.asking.colour import to_unit
from stages.asking.paradigm import Task
from stages.asking.tasks import TASKS

# In the order in which they stand on each other; the images, which start the page, come last.
SHIPPED = ("page_elements.js", "steer_colour.js", "steer_unet.js", "steer_talk.js", "steer_page.js")
SCRIPTS = (*SHIPPED, "data/agent.js", "data/images.js")
EXACT_BYTES = 8_000_000  # of float32; larger networks travel without its last byte
MOST_BYTES = 24_000_000  # as they travel: the default network is just within
MOST_WORK = 4_000_000_000  # multiplications a step: a few seconds in a browser
_LEAD = (
    "Choose another colour for what the network asked about: the pictures after that answer are made anew, here on "
    "this page, and what it asks next may change. Answers that are not yours stay true."
)
_LIGHTNESS = (
    "Only hue and saturation of a colour are told: the picture has its own lightness, the strip above shows both."
)
_SHORT = "The network is large for a page: its weights are rounded to 24 bits here."
_WAITING = "The network lies beside this page as a script: it needs JavaScript, and its folder kept together."


@dataclass(frozen=True)
class Steering:
    """What the page's folder holds beside it; without ``scripts``, ``refusal`` says why there is no such part."""

    task: str = ""
    scripts: Mapping[str, bytes] | None = None
    short: bool = False
    refusal: str = ""


def steering(run: str, task: Task, agent: UNetAgent, images: Mapping[str, np.ndarray]) -> Steering:
    """``images``: uint8 [3, h, w] by key, as the network is shown them; all of one size."""
    shape = next((image.shape[1:] for image in images.values()), None)
    if shape is None:
        return Steering(task.name)
    refusal = too_large(task, agent, shape) or ("" if type(task) in TASKS.values() else f"it has no task {task.name}")
    if refusal:
        cure = f"'raylens answer {run} IMAGE --answer 1=#c03020 --out answered.html' does the same on the command line."
        return Steering(task.name, refusal=f"The network cannot be answered on this page: {refusal}. {cure}")
    facts = _agent(task, agent, shape)
    found = scripts("jobs.asking", SHIPPED)
    found["data/agent.js"] = script("agent", facts)
    named = zip(images, short_names(list(images)), strict=True)
    found["data/images.js"] = script("images", [_image(task, key, name, images[key]) for key, name in named])
    return Steering(task.name, found, short=facts["kind"] == "float24")


def too_large(task: Task, agent: UNetAgent, shape: Sequence[int]) -> str:
    """Why a page cannot hold the network or take a step in a few seconds; nothing where it can."""
    numbers = sum(tensor.numel() for tensor in agent.state_dict().values())
    stored = numbers * (4 if 4 * numbers <= EXACT_BYTES else 3)
    if stored > MOST_BYTES:
        return f"its weights are {size(stored)}, and a page holds {size(MOST_BYTES)}"
    work = multiplications(task, agent, shape)
    if work > MOST_WORK:
        return (
            f"a step takes {work / 1e9:.1f} · 10⁹ multiplications, and a page has time for {MOST_WORK / 1e9:.0f} · 10⁹"
        )
    return ""


@torch.no_grad()
def multiplications(task: Task, agent: UNetAgent, shape: Sequence[int]) -> int:
    """Of one step on one image of (height, width), counted where nothing is computed."""
    channels = (task.observed, 1, task.answered, task.produced)
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        thought = UNetAgent(task, agent.config).eval()
        thought(*(torch.zeros(1, c, *shape) for c in channels))
    return int(counted.get_total_flops()) // 2


def steering_section(found: Steering) -> Section | None:
    """Nothing where there are no images."""
    if found.refusal:
        return Section("Answer it yourself", [Paragraph(found.refusal)])
    if found.scripts is None:
        return None
    notes = [_LIGHTNESS] * (found.task == "natural") + [_SHORT] * found.short
    blocks: list[Any] = [Mount("steer", _WAITING)]
    return Section("Answer it yourself", blocks, " ".join([_LEAD, *notes]))


@cache
def steering_style() -> str:
    return (files("jobs.asking") / "steer.css").read_text(encoding="utf-8")


def _agent(task: Task, agent: UNetAgent, shape: Sequence[int]) -> dict[str, Any]:
    state = {name: tensor.detach().cpu().float().numpy().ravel() for name, tensor in agent.state_dict().items()}
    numbers = np.concatenate(list(state.values()))
    short = numbers.nbytes > EXACT_BYTES
    return {
        "task": task.name,
        "hints": task.hints,
        "question": FORMULA,
        "observed": task.observed,
        "produced": task.produced,
        "answered": task.answered,
        "height": int(shape[0]),
        "width": int(shape[1]),
        "unet": {"width": agent.config.width, "depth": agent.config.depth, "most": agent.config.most},
        "tensors": [[name, len(values)] for name, values in state.items()],
        "kind": "float24" if short else "float32",
        "numbers": _base64(_shortened(numbers) if short else numbers.astype("<f4")),
    }


def _shortened(numbers: np.ndarray) -> np.ndarray:
    """float32 -> the upper three bytes of the nearest that has no others, uint8 [n, 3], the lowest first."""
    bits = numbers.astype("<f4").view("<u4") + np.uint32(0x80)
    return bits.view(np.uint8).reshape(-1, 4)[:, 1:]


def _image(task: Task, key: str, name: str, image: np.ndarray) -> dict[str, str]:
    x = task.observe(to_unit(torch.from_numpy(image)[None]))[0]
    return {"key": key, "name": name, "x": text(x.numpy()), "rgb": _base64(image.transpose(1, 2, 0))}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
