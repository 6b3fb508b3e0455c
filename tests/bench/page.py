"""From a pointer event to the painted picture on the explorer's page, in headless Chromium over file://.

    python tests/bench/page.py [--quick] [--side 64] [--networks 2] [--moves 300] [--page RUN/report/.../index.html]

Draws rows and columns of the sizes of ESPCN x2 and FSRCNN x2 (9 and 17 pixels read, 18 and 34 written) for an image of
side x side, writes the page, and moves a real mouse over its input: steps to a neighbour, as a hand moves, and jumps to
anywhere, most of which ask for a file that was not read yet. A move ends with the frame that shows it. The goal of the
design is 100 ms. Needs playwright and /usr/bin/chromium. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CHROMIUM = "/usr/bin/chromium"
FIELDS = (9, 17)  # pixels along an axis that an output of ESPCN, of FSRCNN reads

# Told by the page itself: when the event came, and the end of the frame in which the picture was put on the canvas.
WATCH = """
window.times = [];
document.addEventListener("pointermove", (event) => { window.moved = event.timeStamp; }, { capture: true });
document.addEventListener("drawn", () => {
  if (window.moved === undefined) return;
  const start = window.moved;
  window.moved = undefined;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => window.times.push(performance.now() - start);
  port2.postMessage(0);
});
"""


def filters(side: int, field: int, rng: np.random.Generator) -> Any:
    """What a network twice as large that reads ``field`` pixels gives: every row and column."""
    from jobs.explorer.rows import Filters, Patches

    def patches(size: int, patch: int, scale: float) -> Patches:
        places = np.argwhere(np.ones((1, size, size), bool)).astype(np.int32)
        corners = (places[:, 1:] * scale).astype(np.int32) - patch // 2
        return Patches(places, corners, rng.standard_normal((len(places), 1, patch, patch), np.float32))

    picture, output = (rng.random((1, s, s), np.float32) for s in (side, 2 * side))
    rows, columns = patches(2 * side, field, 0.5), patches(side, 2 * field, 2)
    return Filters(picture, output, output - 0.5, rows, columns, bounded=True)


def write(folder: Path, side: int, networks: int) -> Path:
    """The page of one image, without a run: its scripts, its index, its index.html."""

    from jobs.explorer.chunks import filter_facts, filter_scripts, script
    from jobs.explorer.page import SHIPPED, ExplorerData, explorer_page
    from jobs.report.parts import scripts

    rng = np.random.default_rng(0)
    names = [f"net{i}" for i in range(networks)]
    told = []
    for i in range(networks):
        found = filters(side, FIELDS[i % len(FIELDS)], rng)
        told.append({"filters": filter_facts(found) | {"folder": f"0-{i}"}})
        (folder / f"data/0-{i}").mkdir(parents=True)
        for name, data in filter_scripts(found, f"0-{i}"):
            (folder / f"data/{name}.js").write_bytes(data)
    images = [{"key": "drawn", "name": "drawn", "thumbnail": None, "networks": told}]
    index = {"networks": [{"name": name} for name in names], "images": images}
    (folder / "data/index.js").write_bytes(script("index", index))
    for name, content in scripts("jobs.explorer", SHIPPED).items():
        (folder / name).write_bytes(content)
    described = {"config": {"task": "filters", "networks": {name: {} for name in names}}}
    return explorer_page(ExplorerData("bench", described, [], images)).write(folder / "index.html")


def walk(side: int, moves: int, *, near: bool) -> list[tuple[int, int]]:
    """Pixels (y, x), one step apart or anywhere; never the same twice in a row."""
    draw = random.Random(0)
    at = (side // 2, side // 2)
    found: list[tuple[int, int]] = []
    while len(found) < moves:
        step = (draw.choice((-1, 0, 1)), draw.choice((-1, 0, 1)))
        there = (at[0] + step[0], at[1] + step[1]) if near else (draw.randrange(side), draw.randrange(side))
        if there != at and min(there) >= 0 and max(there) < side:
            at = there
            found.append(at)
    return found


def measure(page: Any, pixels: list[tuple[int, int]], pause: float) -> list[float]:
    """Milliseconds of each move."""
    canvas = page.locator(".panel.input canvas").first
    box, (height, width) = canvas.bounding_box(), canvas.evaluate("c => [c.height, c.width]")
    page.evaluate("window.times = []")
    for i, (y, x) in enumerate(pixels):
        page.mouse.move(box["x"] + (x + 0.5) / width * box["width"], box["y"] + (y + 0.5) / height * box["height"])
        page.wait_for_function("n => window.times.length >= n", arg=i + 1, timeout=10_000)
        time.sleep(pause)
    return list(page.evaluate("window.times"))


def told(times: list[float]) -> dict[str, float]:
    ranked = sorted(times)
    at = lambda share: ranked[min(len(ranked) - 1, int(share * len(ranked)))]  # noqa: E731
    return {"median": round(statistics.median(ranked), 1), "p95": round(at(0.95), 1), "max": round(ranked[-1], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer moves")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--moves", type=int)
    parser.add_argument("--page", type=Path, help="a page that is there, instead of a drawn one")
    options = parser.parse_args()
    moves = options.moves or (60 if options.quick else 300)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is needed: pip install playwright")
    if not Path(CHROMIUM).exists():
        sys.exit(f"Chromium is needed at {CHROMIUM}")
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as scratch, sync_playwright() as playwright:
        path = options.page or write(Path(scratch), options.side, options.networks)
        size = sum(p.stat().st_size for p in path.parent.rglob("*") if p.is_file())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        start = time.perf_counter()
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(".panel.row canvas[data-place]")
        opened = time.perf_counter() - start
        page.evaluate(WATCH)
        page.locator(".panel.input canvas").first.scroll_into_view_if_needed()
        side = page.evaluate("document.querySelector('.panel.input canvas').width")
        first = measure(page, walk(side, moves, near=False), 0.0)
        near = measure(page, walk(side, moves, near=True), 0.03)
        networks = page.locator("article.network .panel.input").count()
        held = page.evaluate("store.bytes")
        browser.close()
    found = {"near_ms": told(near), "anywhere_ms": told(first)}
    print(f"a page of {size / 1e6:.1f} MB, {networks} networks, input {side} x {side}; opened in {opened:.2f} s")
    for name, text in (("near_ms", "to a neighbour"), ("anywhere_ms", "anywhere, files unread")):
        row = found[name]
        print(f"{text:24} median {row['median']:6.1f} ms   95 % {row['p95']:6.1f} ms   slowest {row['max']:6.1f} ms")
    print(
        json.dumps(
            {
                "bench": "page", "side": side, "networks": networks, "moves": moves, **found,
                "opened_s": round(opened, 2), "page_mb": round(size / 1e6, 1), "held_mb": round(held / 1e6, 1),
                "machine": platform.machine(), "quick": options.quick,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
