"""The explorer in a browser, opened from disk: what is pointed at is shown, as the run's rows have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorer_cases import chromium, drawn, make_run, network, opened, rows_of, write
from torch import nn

pytestmark = pytest.mark.browser

STOPS = {
    "light": [(5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)],
    "dark": [(158, 212, 255), (49, 120, 184), (28, 33, 40), (196, 74, 50), (255, 201, 153)],
}
# What is asked for before this is drawn when it is over.
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
INK = {-1: (20, 110, 255), 1: (255, 56, 30)}


class Made:
    """A run, its page and its rows, read anew."""

    def __init__(self, folder: Path, names: dict[str, Any], **options: Any) -> None:
        self.run = make_run(folder, names, {"a.png": drawn(12, 0), "b.png": drawn(12, 1)}, size=12, **options)
        self.path = write(self.run)
        self.index = json.loads((self.path.parent / "data/index.js").read_text()[len('raylens("index", ') : -3])
        self.rows = {step["name"]: rows_of(self.run, step["name"]) for step in self.run.describe()["steps"]}

    def picture(self, name: str, which: str, key: str = "a.png") -> np.ndarray:
        row = self.rows[f"filters_{name}"][key]
        return row[which].reshape(row["input_shape" if which == "input" else "output_shape"])

    def filter(self, name: str, kind: str, place: tuple[int, int, int], key: str = "a.png") -> np.ndarray:
        """The whole row or column of a place, as an image with all channels, and 0 beyond its patch."""
        row = self.rows[f"filters_{name}"][key]
        at = row[f"{kind}_places"].reshape(-1, 3).tolist().index(list(place))
        patch = row[f"{kind}_values"].reshape(-1, *row[f"{kind}_patch_shape"])[at].astype(np.float64)
        top, left = row[f"{kind}_corner"].reshape(-1, 2)[at]
        found = np.zeros(row["input_shape" if kind == "row" else "output_shape"])
        for (c, y, x), value in np.ndenumerate(patch):
            if 0 <= top + y < found.shape[1] and 0 <= left + x < found.shape[2]:
                found[c, top + y, left + x] = value
        return found

    def box(self, name: str, kind: str, place: tuple[int, int, int]) -> np.ndarray:
        """Which pixels its patch covers."""
        row = self.rows[f"filters_{name}"]["a.png"]
        at = row[f"{kind}_places"].reshape(-1, 3).tolist().index(list(place))
        top, left = row[f"{kind}_corner"].reshape(-1, 2)[at]
        _, height, width = row[f"{kind}_patch_shape"]
        y, x = np.indices(row["input_shape" if kind == "row" else "output_shape"][1:])
        return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    names = {"wide": network(0), "narrow": network(1, kernel=3)}
    return Made(tmp_path_factory.mktemp("filters"), names, svd=3)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Colours in and out, and only some pixels stored, with whole images."""
    names = {"rgb": network(2, channels=3, kernel=3)}
    return Made(tmp_path_factory.mktemp("grid"), names, colour="rgb", places="grid", grid=4)


def diverging(weights: np.ndarray, largest: float, scheme: str = "light") -> np.ndarray:
    """RGBA of weights between -largest and largest."""
    colours = [
        np.interp(weights / largest, [-1, -0.5, 0, 0.5, 1], channel) for channel in zip(*STOPS[scheme], strict=True)
    ]
    return np.stack([*(np.floor(c + 0.5) for c in colours), np.full(weights.shape, 255)], axis=-1)


def in_place(picture: np.ndarray, weights: np.ndarray, box: np.ndarray, largest: float) -> np.ndarray:
    """RGBA of a grey picture in 0..1 with weights over it."""
    grey = np.floor(255 * np.clip(picture.astype(np.float64), 0, 1) + 0.5)
    opaque = np.where(box, np.sqrt(np.abs(weights) / largest), 0)
    ink = np.where(weights[..., None] < 0, np.array(INK[-1]), np.array(INK[1]))
    colours = np.floor(grey[..., None] + (ink - grey[..., None]) * opaque[..., None] + 0.5)
    return np.concatenate([colours, np.full((*picture.shape, 1), 255)], axis=-1)


def canvas(page: Any, network: str, panel: str) -> Any:
    return page.locator(f"article[aria-label='{network}'] .panel.{panel} canvas")


def pixels(found: Any) -> np.ndarray:
    """What a canvas shows: RGBA [height, width, 4]."""
    data = found.evaluate("c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    return np.array(data[2:]).reshape(data[0], data[1], 4)


DRAWN = """() => !document.querySelector("article.network .panel.row")
    || document.querySelector("article.network .panel.row canvas[data-place]")"""


def spot(found: Any, y: int, x: int, *, drawn: bool = True) -> tuple[float, float]:
    """Where on the screen a pixel of a canvas lies, once everything is in its place: the first drawing moves it."""
    if drawn:
        found.page.wait_for_function(DRAWN)
    found.scroll_into_view_if_needed()
    box = found.bounding_box()
    height, width = found.evaluate("c => [c.height, c.width]")
    return box["x"] + (x + 0.5) / width * box["width"], box["y"] + (y + 0.5) / height * box["height"]


def until(page: Any, network: str, row: tuple[int, ...], column: tuple[int, ...]) -> None:
    """Both filters of these places are shown."""
    for panel, place in (("row", row), ("column", column)):
        told = ",".join(map(str, place))
        page.wait_for_selector(f"article[aria-label='{network}'] .panel.{panel} canvas[data-place='{told}']")


def window(found: Any) -> tuple[int, int, int, int]:
    return tuple(int(v) for v in found.get_attribute("data-window").split(","))  # type: ignore[return-value]


def cut(image: np.ndarray, view: tuple[int, int, int, int], outside: float = np.nan) -> np.ndarray:
    """The part of an image [h, w] in a window that may reach beyond it."""
    top, left, height, width = view
    found = np.full((height, width), outside)
    for y in range(height):
        for x in range(width):
            if 0 <= top + y < image.shape[0] and 0 <= left + x < image.shape[1]:
                found[y, x] = image[top + y, left + x]
    return found


def equal(shown: np.ndarray, weights: np.ndarray, largest: float, scheme: str = "light") -> None:
    """The canvas shows these weights; where there is none (NaN), the ground."""
    expected = diverging(np.nan_to_num(weights), largest, scheme)
    expected[np.isnan(weights)] = 0
    np.testing.assert_array_equal(shown, expected)


def datum(page: Any, network: str, panel: str, nth: int) -> float:
    found = page.locator(f"article[aria-label='{network}'] .panel.{panel} .readout data").nth(nth)
    return float(found.get_attribute("value"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pointing_shows_the_stored_row_and_column_of_every_network_at_once(
    browser: Any, made: Made, scheme: str
) -> None:
    with opened(browser, made.path, color_scheme=scheme) as page:
        points = (("input", 4, 7), ("output", 23, 0), ("input", 0, 11), ("residual", 10, 13))
        for side, y, x in points if scheme == "light" else points[:1]:
            page.mouse.move(*spot(canvas(page, "narrow", side), y, x))
            p = (0, y, x) if side == "input" else (0, y // 2, x // 2)
            q = (0, 2 * y + 1, 2 * x + 1) if side == "input" else (0, y, x)
            rows, columns = {}, {}
            for name in ("wide", "narrow"):
                until(page, name, q, p)
                rows[name], columns[name] = made.filter(name, "row", q)[0], made.filter(name, "column", p)[0]
            largest = max(np.abs(f).max() for f in (*rows.values(), *columns.values()))
            assert float(page.locator(".legend").first.get_attribute("data-largest")) == largest
            for name in ("wide", "narrow"):
                for panel, weights in (("row", rows[name]), ("column", columns[name])):
                    found = canvas(page, name, panel)
                    equal(pixels(found), cut(weights, window(found)), largest, scheme)
                expected = in_place(made.picture(name, "input")[0], rows[name], made.box(name, "row", q), largest)
                np.testing.assert_array_equal(pixels(canvas(page, name, "input")), expected)
                residual = made.picture(name, "residual")[0]
                peak = max(np.abs(made.picture(n, "residual")).max() for n in ("wide", "narrow"))
                equal(pixels(canvas(page, name, "residual")), residual, peak, scheme)
                assert datum(page, name, "input", 0) == made.picture(name, "input")[p]
                assert datum(page, name, "output", 0) == made.picture(name, "output")[q]
                assert datum(page, name, "row", 0) == rows[name][p[1:]]
                assert datum(page, name, "column", 0) == columns[name][q[1:]]
                assert datum(page, name, "row", 1) == pytest.approx(rows[name].sum(), abs=1e-9)
                assert datum(page, name, "column", 2) == np.abs(columns[name]).max()
                terms = page.locator(f"article[aria-label='{name}'] .facts data")
                applied, rest, total = (float(terms.nth(i).get_attribute("value")) for i in range(3))
                assert applied == pytest.approx(float((rows[name] * made.picture(name, "input")[0]).sum()))
                assert applied + rest == pytest.approx(total, abs=1e-5)


def test_a_filter_lies_over_the_picture_or_not_as_chosen(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.mouse.move(*spot(canvas(page, "wide", "input"), 3, 2))
        until(page, "wide", (0, 7, 5), (0, 3, 2))
        over = pixels(canvas(page, "wide", "output"))
        page.get_by_label("filters in place").uncheck()
        page.wait_for_function(FRAMES)
        black, white = made.index["images"][0]["networks"][0]["filters"]["shown"]["output"]
        base = np.clip((made.picture("wide", "output")[0].astype(float) - black) / (white - black), 0, 1)
        grey = np.floor(255 * base + 0.5)
        plain = pixels(canvas(page, "wide", "output"))
        np.testing.assert_array_equal(plain[..., 0], grey)
        column = made.filter("wide", "column", (0, 3, 2))[0]
        largest = float(page.locator(".legend").first.get_attribute("data-largest"))
        expected = in_place(base, column, made.box("wide", "column", (0, 3, 2)), largest)
        np.testing.assert_array_equal(over, expected)


def test_arrow_keys_move_the_pixel_and_a_screen_reader_is_told(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        stage = page.locator("article[aria-label='wide'] .panel.input .stage")
        assert stage.get_attribute("aria-label").startswith("Input of wide, 12 × 12 pixels")
        stage.focus()
        until(page, "narrow", (0, 12, 12), (0, 6, 6))  # the middle, at first
        for key, place in (
            ("ArrowRight", (6, 7)), ("ArrowDown", (7, 7)), ("ArrowLeft", (7, 6)), ("ArrowUp", (6, 6)),
            ("Shift+ArrowUp", (0, 6)), ("ArrowUp", (0, 6)), ("Shift+ArrowRight", (0, 11)),
        ):  # fmt: skip
            page.keyboard.press(key)
            y, x = place
            until(page, "narrow", (0, 2 * y + 1, 2 * x + 1), (0, y, x))
        page.wait_for_function("() => document.querySelector('.spoken').textContent.includes('row of output (23, 1)')")
        page.locator("article[aria-label='wide'] .panel.output .stage").focus()
        page.keyboard.press("ArrowLeft")
        until(page, "wide", (0, 1, 22), (0, 0, 11))
        page.locator("article[aria-label='wide'] .panel.column .stage").focus()
        page.keyboard.press("ArrowDown")
        column = made.filter("wide", "column", (0, 0, 11))[0]
        page.wait_for_function("() => document.querySelector('.spoken').textContent.startsWith('weight at (22, 2)')")
        page.wait_for_function(FRAMES)  # it is said at once and drawn with the next frame
        assert datum(page, "wide", "column", 0) == column[2, 22]


def test_a_tap_shows_a_pixel_on_a_phone(browser: Any, made: Made) -> None:
    with opened(browser, made.path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.touchscreen.tap(*spot(canvas(page, "narrow", "input"), 2, 9))
        until(page, "narrow", (0, 5, 19), (0, 2, 9))
        row = made.filter("narrow", "row", (0, 5, 19))[0]
        found = canvas(page, "narrow", "row")
        equal(
            pixels(found), cut(row, window(found)), float(page.locator(".legend").first.get_attribute("data-largest"))
        )
        page.get_by_role("button", name="One pixel to the left").tap()
        until(page, "wide", (0, 5, 17), (0, 2, 8))


def test_what_a_tap_reads_stays_when_the_finger_is_lifted(browser: Any, made: Made) -> None:
    with opened(browser, made.path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.touchscreen.tap(*spot(canvas(page, "wide", "input"), 5, 5))
        until(page, "wide", (0, 11, 11), (0, 5, 5))
        for panel, place, (y, x) in (("row", (0, 11, 11), (4, 6)), ("column", (0, 5, 5), (12, 9))):
            zoomed = canvas(page, "wide", panel)
            top, left, *_ = window(zoomed)
            page.touchscreen.tap(*spot(zoomed, y - top, x - left))
            page.wait_for_function(FRAMES)
            assert datum(page, "wide", panel, 0) == made.filter("wide", panel, place)[0, y, x]
        chosen = page.locator(".strip article:has(h3:text('wide')) .chosen")
        for nth, (vectors, side, (y, x)) in enumerate((("inputs", 12, (7, 2)), ("outputs", 24, (20, 3)))):
            page.touchscreen.tap(*spot(chosen.locator("canvas").nth(nth), y, x))
            page.wait_for_function(FRAMES)
            told = chosen.locator(".readout").nth(nth)
            assert told.inner_text().startswith(f"x {x}, y {y}:")
            stored = made.rows["svd_wide"]["a.png"][vectors].reshape(3, side, side)
            assert float(told.locator("data").get_attribute("value")) == stored[0, y, x]


def test_a_click_holds_the_pixel_so_that_weights_can_be_read(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.mouse.click(*spot(canvas(page, "wide", "input"), 5, 5))
        until(page, "wide", (0, 11, 11), (0, 5, 5))
        page.mouse.move(*spot(canvas(page, "wide", "input"), 9, 1))
        zoomed = canvas(page, "wide", "row")
        top, left, *_ = window(zoomed)
        page.mouse.move(*spot(zoomed, 4 - top, 6 - left))
        row = made.filter("wide", "row", (0, 11, 11))[0]
        page.wait_for_function("() => document.querySelector('.panel.row .readout').textContent.startsWith('(6, 4)')")
        assert datum(page, "wide", "row", 0) == row[4, 6]
        page.keyboard.press("Escape")
        page.mouse.click(*spot(canvas(page, "wide", "output"), 1, 2))
        until(page, "wide", (0, 1, 2), (0, 0, 1))
        page.mouse.click(*spot(canvas(page, "wide", "output"), 1, 2))
        page.mouse.move(*spot(canvas(page, "wide", "output"), 20, 20))
        until(page, "wide", (0, 20, 20), (0, 10, 10))


def test_zoom_enlarges_around_the_pixel(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.mouse.move(*spot(canvas(page, "wide", "input"), 6, 4))
        until(page, "wide", (0, 13, 9), (0, 6, 4))
        found = canvas(page, "wide", "row")
        row = made.filter("wide", "row", (0, 13, 9))[0]
        largest = float(page.locator(".legend").first.get_attribute("data-largest"))
        sides = []
        for _ in range(4):
            view = window(found)
            sides.append(view[2])
            equal(pixels(found), cut(row, view), largest)
            page.get_by_role("button", name="Enlarge").click()
            page.wait_for_function(
                "n => document.querySelector('.tools output').textContent === n", arg=f"{min(8, 2 ** len(sides))}×"
            )
            page.wait_for_function(FRAMES)
        assert sides == [9, 5, 3, 3]
        page.keyboard.press("-")
        page.keyboard.press("-")
        page.keyboard.press("-")
        page.wait_for_function("() => document.querySelector('.tools output').textContent === '1×'")


def test_one_scale_holds_for_all_networks_or_for_the_whole_image(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.mouse.move(*spot(canvas(page, "wide", "output"), 9, 9))
        until(page, "narrow", (0, 9, 9), (0, 4, 4))
        scale = page.locator(".legend").first

        def largest(*names: str) -> float:
            found = [made.filter(n, k, p) for n in names for k, p in (("row", (0, 9, 9)), ("column", (0, 4, 4)))]
            return max(float(np.abs(f).max()) for f in found)

        assert float(scale.get_attribute("data-largest")) == largest("wide", "narrow")
        shown = [float(v) for v in scale.locator("data").evaluate_all("all => all.map(d => d.value)")]
        assert shown == [c * largest("wide", "narrow") for c in (-1, -0.5, 0, 0.5, 1)]
        page.get_by_role("checkbox", name="wide").uncheck()
        page.wait_for_function(
            "v => document.querySelector('.legend').dataset.largest === v", arg=str(largest("narrow"))
        )
        page.locator("article[aria-label='wide']").first.wait_for(state="hidden")  # a frame later
        page.get_by_label("Colours up to the largest of").select_option("image")
        row = made.rows["filters_narrow"]["a.png"]
        peak = max(float(np.abs(row[f"{kind}_values"]).max()) for kind in ("row", "column"))
        page.wait_for_function("v => document.querySelector('.legend').dataset.largest === v", arg=str(peak))


def test_another_image_is_another_system(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.mouse.move(*spot(canvas(page, "wide", "input"), 3, 3))
        until(page, "wide", (0, 7, 7), (0, 3, 3))
        page.locator(".thumb", has_text="b").click()
        value = str(float(made.filter("wide", "row", (0, 7, 7), "b.png")[0, 3, 3]))
        page.wait_for_function(
            "v => document.querySelector('.panel.row .readout data').getAttribute('value') === v", arg=value
        )
        assert datum(page, "wide", "input", 0) == made.picture("wide", "input", "b.png")[0, 3, 3]


def test_of_a_grid_the_nearest_stored_pixel_is_shown_channel_by_channel(browser: Any, grid: Made) -> None:
    stored = grid.rows["filters_rgb"]["a.png"]
    inputs, outputs = ({tuple(p[1:]) for p in stored[f"{k}_places"].reshape(-1, 3).tolist()} for k in ("column", "row"))

    def nearest(places: set[tuple[int, ...]], y: int, x: int) -> tuple[int, ...]:
        return min(sorted(places), key=lambda p: (p[0] - y) ** 2 + (p[1] - x) ** 2)

    with opened(browser, grid.path) as page:
        page.get_by_label("Input channel").select_option("2")
        page.get_by_label("Output channel").select_option("green")
        page.mouse.move(*spot(canvas(page, "rgb", "input"), 4, 10))
        p, q = nearest(inputs, 4, 10), nearest(outputs, 9, 21)
        until(page, "rgb", (1, *q), (2, *p))
        row, column = grid.filter("rgb", "row", (1, *q))[2], grid.filter("rgb", "column", (2, *p))[1]
        largest = max(np.abs(row).max(), np.abs(column).max())
        equal(pixels(canvas(page, "rgb", "row")), row, largest)
        equal(pixels(canvas(page, "rgb", "column")), column, largest)
        page.locator(".panel.input .stage").focus()
        page.keyboard.press("ArrowLeft")
        following = (p[0], max(x for y, x in inputs if x < p[1]))
        page.wait_for_selector(f".panel.column canvas[data-place='2,{following[0]},{following[1]}']")
        page.get_by_label("filters in place").uncheck()
        page.wait_for_function(FRAMES)
        expected = np.floor(255 * grid.picture("rgb", "input").astype(float) + 0.5).transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels(canvas(page, "rgb", "input"))[..., :3], expected)


def test_of_a_grid_a_click_that_shows_the_held_pixel_lets_go(browser: Any, grid: Made) -> None:
    stored = grid.rows["filters_rgb"]["a.png"]["column_places"].reshape(-1, 3)
    (y, x), away = stored[0, 1:].tolist(), stored[-1, 1:].tolist()
    assert y > 0, "the corner is not stored, but stands for the first place that is"
    with opened(browser, grid.path) as page:

        def click(y: int, x: int, *, held: bool) -> None:
            page.mouse.click(*spot(canvas(page, "rgb", "input"), y, x))
            page.wait_for_function("held => !!document.querySelector('.hint.held') === held", arg=held)
            page.wait_for_function(FRAMES)

        click(0, 0, held=True)
        page.wait_for_selector(f".panel.column canvas[data-place='0,{y},{x}']")
        click(*away, held=True)
        page.wait_for_selector(f".panel.column canvas[data-place='0,{away[0]},{away[1]}']")
        click(0, 0, held=True)
        click(0, 0, held=False)
        page.mouse.move(*spot(canvas(page, "rgb", "input"), *away))
        page.wait_for_selector(f".panel.column canvas[data-place='0,{away[0]},{away[1]}']")


def test_a_network_of_fewer_channels_shows_its_last(browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    colours = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.PixelShuffle(2)).eval()
    made = Made(tmp_path, {"grey": network(0, kernel=3), "colours": colours})
    with opened(browser, made.path) as page:
        page.get_by_label("Output channel").select_option("blue")
        page.mouse.move(*spot(canvas(page, "grey", "input"), 6, 4))
        until(page, "grey", (0, 13, 9), (0, 6, 4))
        until(page, "colours", (2, 13, 9), (0, 6, 4))
        column = made.filter("grey", "column", (0, 6, 4))[0]
        largest = float(page.locator(".legend").first.get_attribute("data-largest"))
        equal(pixels(found := canvas(page, "grey", "column")), cut(column, window(found)), largest)
        box = made.box("grey", "column", (0, 6, 4))
        black, white = made.index["images"][0]["networks"][0]["filters"]["shown"]["output"]
        base = np.clip((made.picture("grey", "output")[0].astype(float) - black) / (white - black), 0, 1)
        np.testing.assert_array_equal(pixels(canvas(page, "grey", "output")), in_place(base, column, box, largest))
        peak = max(np.abs(made.picture(n, "residual")).max() for n in ("grey", "colours"))
        equal(pixels(canvas(page, "grey", "residual")), made.picture("grey", "residual")[0], peak)


def test_without_a_network_there_is_nothing_to_step_through(browser: Any, made: Made) -> None:
    with opened(browser, made.path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        until(page, "narrow", (0, 12, 12), (0, 6, 6))
        for name in ("wide", "narrow"):
            page.get_by_role("checkbox", name=name).uncheck()
        page.get_by_role("button", name="One pixel up").tap()
        page.get_by_role("checkbox", name="narrow").check()
        page.get_by_role("button", name="One pixel up").tap()
        until(page, "narrow", (0, 11, 13), (0, 5, 6))


def test_the_strip_shows_the_singular_vectors_with_their_sigma(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        for name in ("wide", "narrow"):
            stored = made.rows[f"svd_{name}"]["a.png"]
            items = page.locator(f".strip article:has(h3:text('{name}')) .pairs button")
            assert items.count() == 3
            shown = [float(items.nth(i).locator("data").get_attribute("value")) for i in range(3)]
            assert shown == stored["sigma"].tolist()
            for i in range(3):
                items.nth(i).click()
                large = page.locator(f".strip article:has(h3:text('{name}')) .chosen canvas")
                page.wait_for_selector(f".strip article:has(h3:text('{name}')) .chosen canvas[data-pair='{i}']")
                for nth, (vectors, side) in enumerate((("inputs", 12), ("outputs", 24))):
                    vector = stored[vectors].reshape(3, side, side)[i].astype(np.float64)
                    for found in (items.nth(i).locator("canvas").nth(nth), large.nth(nth)):
                        equal(pixels(found), vector, np.abs(vector).max())
            page.mouse.move(*spot(large.nth(0), 7, 2))
            value = str(float(stored["inputs"].reshape(3, 12, 12)[2, 7, 2]))
            first = f".strip article:has(h3:text('{name}')) .chosen .readout data"
            page.wait_for_selector(f"{first}[value='{value}'] >> nth=0")


def test_an_svd_run_has_a_page_of_strips(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path, {"net": network(0)}, {"a.png": drawn(8, 0)}, size=8, svd=2, task="svd")
    with opened(browser, write(run)) as page:
        page.wait_for_selector(".strip .chosen canvas[data-pair='0']")
        assert page.locator("h1").inner_text() == "Singular vectors of net"
        assert page.locator(".explorer").count() == 0


def test_memory_is_bounded_whatever_is_pointed_at(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.evaluate(
            "() => { const take = store.take; store.limit = 440000; store.taken = 0;"
            " store.take = (...given) => { store.taken += 1; take.apply(store, given); }; }"
        )
        largest = 0
        for at in range(0, 24, 2):
            page.mouse.move(*spot(canvas(page, "wide", "output"), at, 23 - at))
            until(page, "wide", (0, at, 23 - at), (0, at // 2, (23 - at) // 2))
            largest = max(largest, page.evaluate("store.bytes"))
        assert page.evaluate("[...store.held.values()].reduce((sum, held) => sum + held.bytes, 0) === store.bytes")
        assert 400_000 < largest <= 440_000, "what is drawn at once needs 436,256"
        assert page.evaluate("store.taken > store.held.size"), "nothing had to go: this test shows nothing"
        assert page.evaluate("store.held.size") > 4


def test_a_drawing_that_needs_more_than_the_memory_is_drawn_and_then_at_rest(browser: Any, made: Made) -> None:
    with opened(browser, made.path) as page:
        page.wait_for_selector(".strip .chosen canvas[data-pair='0']")
        page.evaluate(
            "() => { const take = store.take; store.limit = 1; store.taken = 0;"
            " store.take = (...given) => { store.taken += 1; take.apply(store, given); }; }"
        )
        for at in (1, 22):
            page.mouse.move(*spot(canvas(page, "wide", "output"), at, 23 - at))
            for name in ("wide", "narrow"):
                until(page, name, (0, at, 23 - at), (0, at // 2, (23 - at) // 2))
        page.wait_for_function("() => !store.loading.size && !store.wishes.length")
        page.evaluate(FRAMES)
        taken = page.evaluate("store.taken")
        page.evaluate(FRAMES)
        assert page.evaluate("store.taken") == taken > 0
        assert page.evaluate("store.loading.size") == 0
        # Nothing but what is drawn: of each network its pictures, a row, a column and the chosen pair.
        assert page.evaluate("store.held.size") == 2 * 4
        assert page.evaluate("[...store.held.values()].reduce((sum, held) => sum + held.bytes, 0) === store.bytes")


def test_a_file_that_is_gone_is_told_of_and_the_rest_goes_on(browser: Any, tmp_path: Path) -> None:
    path = write(make_run(tmp_path, {"net": network(0)}, {"a.png": drawn(12, 0), "b.png": drawn(12, 1)}, size=12))
    (path.parent / "data/0-0-filters/rows-0.js").unlink()
    with opened(browser, path, expected="rows-0.js|ERR_FILE_NOT_FOUND") as page:
        page.mouse.move(*spot(canvas(page, "net", "input"), 0, 0, drawn=False))
        page.wait_for_function("() => document.querySelector('.explorer > .problem').textContent.includes('rows-0.js')")
        page.locator(".thumb", has_text="b").click()
        until(page, "net", (0, 1, 1), (0, 0, 0))


def test_the_page_may_load_nothing_but_its_own_scripts(browser: Any, made: Made) -> None:
    with opened(browser, made.path, expected=r"Content Security Policy|/index\.js$|/x$") as page:
        assert page.evaluate("fetch('data/index.js').then(() => 'got it', () => 'refused')") == "refused"
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\">')")
        assert page.evaluate("new Promise(r => setTimeout(() => r(window.ran ?? 'no'), 50))") == "no"
