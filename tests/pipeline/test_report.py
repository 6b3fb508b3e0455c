"""A report page: one file that loads nothing, escapes everything, and shows what it was given."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from pipeline.errors import RaylensError
from pipeline.report import overlay, plots
from pipeline.report.blocks import (
    Box,
    Card,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Figure,
    FigureRow,
    Group,
    Notice,
    Paragraph,
    Picture,
    PictureGrid,
    PictureRow,
    Section,
    Table,
)
from pipeline.report.images import DataImage, jpeg, png
from pipeline.report.ink import INK, PALETTE, colours, render
from pipeline.report.page import Page
from pipeline.report.venn import venn, venn_counts
from pipeline.report.wording import counted, show

EVIL = "<script>alert('x')</script>\"'&"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Strict(HTMLParser):
    """Fails on tags that are not closed in order, twice-given ids and attributes; keeps what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"<{tag}> has an attribute twice"
        self.seen.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        self.links += [str(given[name]) for name in ("src", "href", "srcset", "data", "action") if given.get(name)]
        if tag == "img":
            self.alts.append(given.get("alt"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.seen if tag == name]


def dot() -> DataImage:
    return png(np.full((4, 6, 3), 200, np.uint8))


def everything(text: str = "plain") -> Page:
    """A page with one block of each kind, every string of it being ``text``."""
    picture = Picture(dot(), text, [Box(0.1, 0.2, 0.5, 0.6), Box(0, 0, 1, 1, "predicted")], text, "good")
    gone = Picture(None, text, missing=text)
    table = Table(
        [Column(text, help=text, unit=text), Column(text, numeric=True, digits=1, best="min"), Column(text, code=True)],
        [Group([[text, Cell(3.0, 0.25, text), text], [text, None, text]], text)],
        text,
        text,
    )
    figure = Figure(plots.bars([text, "b"], [1.0, -2.0], [0.1, 0.3], x_label=text), text, text, text)
    blocks: list[Any] = [
        Paragraph(text),
        Notice(text, text, [text], "bad"),
        Facts([(text, text)]),
        Code(text),
        table,
        figure,
        FigureRow([figure, Figure(venn({text: {1, 2}, "other": {2}}), text, text)]),
        PictureGrid([text, text], [PictureRow(text, [picture, gone], text)], text, text, ("truth", "predicted")),
        Details(text, [Paragraph(text), table]),
    ]
    return Page(
        text, [Section(text, blocks, text), Section(text, [Paragraph(text, muted=True)])], text, text,
        [Card(text, text, text, "good", text)], [Notice(text)], [Facts([(text, text)]), Code(text)], text,
    )  # fmt: skip


def test_html_is_balanced_and_ids_are_distinct() -> None:
    parsed = Strict(everything().html())
    assert len(set(parsed.ids)) == len(parsed.ids)
    targets = {link[1:] for link in parsed.links if link.startswith("#")}
    assert targets <= set(parsed.ids)
    assert {"html", "head", "body", "main", "nav", "table", "figure", "details"} <= {tag for tag, _ in parsed.seen}


@pytest.mark.parametrize(
    "text", [EVIL, "{{ 7 * 7 }}{% raw %}", "$\\frac{1}$ %s", "日本 Ünï", "</style></title>", "-->"]
)
def test_every_string_is_escaped(text: str) -> None:
    html = everything(text).html()
    parsed = Strict(html)
    assert "script" not in {tag for tag, _ in parsed.seen}
    assert html.count("<style>") == html.count("</style>") == 1
    # As text it comes out as it went in, wherever it stood.
    assert parsed.text.count(text) >= 25
    assert all(text in str(alt) for alt in parsed.alts if alt)


def test_nothing_is_fetched_from_anywhere() -> None:
    html = everything().html()
    for link in Strict(html).links:
        assert link.startswith(("data:image/", "#")) or link == "data:,", link[:60]
    assert not re.search(r"@import|url\(|https?:", html)
    assert "default-src 'none'" in html


def test_plots_hold_no_reference_to_elsewhere() -> None:
    text = svg_of(plots.curves([plots.Series("a", [0, 1], [0, 1])], x_label="x", y_label="y"))
    assert re.findall(r"(?:href|src)=\"(?!#)[^\"]*\"", text) == []


def test_images_must_be_carried_in_the_page() -> None:
    for uri in ("https://example.org/a.png", "a.png", "data:text/html;base64,AAAA", 'data:image/png;base64,AA"onload='):
        with pytest.raises(ValueError, match="carries its images"):
            DataImage(uri, 10, 10)


def test_figures_without_alternative_text_are_refused() -> None:
    with pytest.raises(ValueError, match="alternative text"):
        Figure(dot(), " ")
    with pytest.raises(ValueError, match="alternative text"):
        Picture(dot(), "")
    assert all(Strict(everything().html()).alts)


def test_table_headers_say_what_they_head() -> None:
    parsed = Strict(everything().html())
    assert all(attrs.get("scope") in ("col", "row", "rowgroup") for attrs in parsed.tags("th"))


def test_names_that_are_no_text_can_still_be_written(tmp_path: Path) -> None:
    name = b"caf\xe9\x00.jpg".decode("utf-8", "surrogateescape")
    path = everything(name).write(tmp_path / "deep" / "index.html")
    text = path.read_text(encoding="utf-8")
    assert "caf\\xe9\ufffd.jpg" in text
    assert "\x00" not in text


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RaylensError, match="report cannot be written") as caught:
        everything().write(tmp_path / "file" / "index.html")
    assert str(tmp_path / "file") in str(caught.value)


def test_the_same_page_has_the_same_bytes() -> None:
    assert everything().bytes() == everything().bytes()


# Tables


def test_the_best_of_each_group_is_bold_by_what_is_shown() -> None:
    columns = [Column("name"), Column("error", numeric=True, digits=1, best="min"), Column("r", best="max", digits=2)]
    groups = [
        Group([["a", 3.04, 0.5], ["b", 3.01, math.nan], ["c", 9.0, 0.25]], "first"),
        Group([["d", 1.0, 0.9], ["e", Cell(0.5, ranked=False), 0.1], ["f", 2.0, None]], "second"),
        Group([["alone", 7.0, 7.0]], "third"),
    ]
    shown = {row[0].text: [c.best for c in row[1:]] for _, rows in Table(columns, groups, "t").shown() for row in rows}
    assert shown == {
        "a": [True, True], "b": [True, False], "c": [False, False],  # 3.0 and 3.0 read the same
        "d": [True, True], "e": [False, False], "f": [False, False], "alone": [False, False],
    }  # fmt: skip


def test_standard_errors_are_shown_to_the_digits_of_their_value() -> None:
    table = Table([Column("x", numeric=True, digits=2)], [Group([[Cell(1.0, 0.128)], [Cell(2.0, math.nan)]])], "t")
    assert [row[0].se for row in table.shown()[0][1]] == ["±0.13", ""]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells under 1 columns"):
        Table([Column("x")], [Group([[1, 2]])], "t")
    with pytest.raises(ValueError, match="1 pictures under 2 headings"):
        PictureGrid(["a", "b"], [PictureRow("r", [Picture(dot(), "x")])], "c")


@pytest.mark.parametrize(("columns", "scrolls"), [(8, False), (9, True)])
def test_more_pictures_than_a_card_holds_scroll_inside_it(columns: int, scrolls: bool) -> None:
    row = PictureRow("r", [Picture(dot(), "x")] * columns)
    page = Page(title="t", sections=[Section("s", [PictureGrid([str(i) for i in range(columns)], [row], "c")])])
    assert ('class="pictures many"' in page.html()) is scrolls
    assert ".pictures:not(.many) { overflow: visible; }" in page.html()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234567, None, "1,234,567"), (-3, None, "−3"), (0.12345, None, "0.123"), (-0.04, 1, "0.0"), (2.5, 3, "2.500"),
        (None, 2, "–"), (math.nan, 2, "–"), (-math.inf, 2, "−∞"), (True, None, "yes"), (np.float32(0.5), 1, "0.5"),
        (np.int64(12000), None, "12,000"), ("a-b", 1, "a-b"),
    ],
)  # fmt: skip
def test_values_as_a_reader_wants_them(value: Any, digits: int | None, text: str) -> None:
    assert show(value, digits) == text


def test_counts_agree_with_their_noun() -> None:
    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]


# Plots


def svg_of(image: DataImage) -> str:
    assert image.uri.startswith("data:image/svg+xml;base64,")
    return base64.b64decode(image.uri.split(",", 1)[1]).decode("utf-8")


def pixels_of(image: DataImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.uri.split(",", 1)[1]))).convert("RGB"))


def test_venn_counts_by_hand() -> None:
    sets = {"a": {1, 2, 3, 4}, "b": {3, 4, 5}, "c": [4, 4, 6, 1]}
    assert venn_counts(sets) == {
        ("a",): 1, ("a", "b"): 1, ("b",): 1, ("a", "b", "c"): 1, ("a", "c"): 1, ("c",): 1,
    }  # fmt: skip
    assert venn_counts({"a": {1, 2}, "b": set()}) == {("a",): 2}
    assert sum(venn_counts(sets).values()) == len({1, 2, 3, 4, 5, 6})


def test_venn_takes_two_or_three_sets() -> None:
    for n in (1, 4):
        with pytest.raises(ValueError, match=f"not {n}"):
            venn({str(i): {i} for i in range(n)})
    assert svg_of(venn({"a": set(), "b": set()})).startswith("<?xml")


def test_plots_leave_no_figure_open() -> None:
    before = pyplot.get_fignums()
    plots.curves([plots.Series("a", [0, 1], [0, 1], [0, 0], [1, 2], mark=(1, 1))], x_label="x", y_label="y")
    plots.heatmap(np.eye(3), list("abc"), list("xyz"))
    plots.histogram([("p", {"a": [0.1, math.nan, 5.0]})], x_label="v", limits=(0, 1))
    assert pyplot.get_fignums() == before


def test_plots_follow_the_readers_scheme() -> None:
    text = svg_of(plots.curves([plots.Series("a", [0, 1], [0, 1])], x_label="x", y_label="y"))
    assert "prefers-color-scheme:dark" in text
    assert f"fill: {INK}" in text or "fill: #5b6571" in text


def test_odd_values_can_be_drawn() -> None:
    nan = [math.nan] * 3
    plots.curves([plots.Series("a", [1, 2, 3], nan), plots.Series("b", [], [])], x_label="x", y_label="y", log_x=True)
    plots.bars(["a"], [math.nan], [math.nan], x_label="x")
    plots.bars([], [], x_label="x")
    plots.heatmap(np.full((2, 2), np.nan), ["a", "b"], ["c", "d"])
    plots.stacked_curves([("y", [plots.Series("a", [0.1, 1], [1, 2])])], x_label="x", log_x=True)
    with pytest.raises(ValueError, match="shape"):
        plots.heatmap(np.zeros((2, 3)), ["a"], ["b", "c", "d"])


def test_a_symmetric_heatmap_gives_zero_the_middle_colour() -> None:
    # One row, -1 0 3: were the scale not symmetric, the middle colour would stand between -1 and 3.
    text = svg_of(plots.heatmap(np.array([[-1.0, 0.0, 3.0]]), ["r"], ["a", "b", "c"]))
    cells = max(
        (Image.open(io.BytesIO(base64.b64decode(d))) for d in re.findall(r"base64,\s*([A-Za-z0-9+/=\s]+)\"", text)),
        key=lambda image: image.width,
    )
    row = np.asarray(cells.convert("RGB")).astype(int)[cells.height // 2]
    low, zero, high = (row[int(cells.width * at)] for at in (1 / 6, 1 / 2, 5 / 6))
    assert np.ptp(zero) <= 2
    assert zero.min() > 240
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert low.sum() > high.sum()  # -1 is paler than 3


def test_raster_plots_hold_twice_the_pixels_they_are_shown_at() -> None:
    image = render(lambda canvas: canvas.subplots().plot([0, 1]) and None, 200, 100, raster=True)
    assert (image.width, image.height) == (200, 100)
    assert pixels_of(image).shape == (200, 400, 3)


def test_colours_stay_with_their_names() -> None:
    chosen = colours(["a", "b", "c"], {"b": PALETTE[0]})
    assert chosen["b"] == PALETTE[0]
    assert len(set(chosen.values())) == 3
    assert colours(["a", "c"], {"b": PALETTE[0]})["a"] == colours(["a"], None)["a"]


# Overlays


def scene(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_a_map_brightens_where_it_is_high_and_only_there() -> None:
    image = np.full((80, 120, 3), 90, np.uint8)
    heat = np.zeros((4, 6))
    heat[:2, 3:] = 1.0
    light = overlay.blend(image, heat).astype(float).mean(axis=2)
    assert light[5:30, 80:].min() > light[50:, :40].max() + 40
    assert np.ptp(light[60:, :30]) < 1


def test_negative_values_do_not_show_unless_signed() -> None:
    image, heat = np.full((40, 40, 3), 90, np.uint8), np.full((4, 4), -1.0)
    heat[0, 0] = 0.5
    plain, signed = overlay.blend(image, heat), overlay.blend(image, heat, signed=True)
    assert np.ptp(plain[30:, 30:].reshape(-1, 3), axis=0).max() == 0
    assert int(signed[35, 35, 2]) > int(signed[35, 35, 0]) + 30


@pytest.mark.parametrize("heat", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.full((1, 1), -2.0), np.ones((2, 5))])
def test_flat_and_empty_maps_stay_finite(heat: np.ndarray) -> None:
    out = overlay.blend(scene(), heat)
    assert out.shape == (60, 90, 3)
    assert out.dtype == np.uint8


def test_a_grid_keeps_to_its_budget_and_is_crisp_at_twice_its_size() -> None:
    cells = [overlay.Cell(scene(300, 400), "noise", np.eye(7)) for _ in range(6)]
    rows = [("one", "", cells[:3]), ("two", "", cells[3:])]
    roomy = overlay.grid(["a", "b", "c"], rows, caption="c", budget=10_000_000)
    tight = overlay.grid(["a", "b", "c"], rows, caption="c", budget=120_000)

    def size(grid: PictureGrid) -> int:
        return sum(p.image.bytes_in_page for row in grid.rows for p in row.pictures if p.image)

    assert size(tight) <= 120_000 * 1.1
    assert size(roomy) > size(tight)
    image = roomy.rows[0].pictures[0].image
    assert image is not None
    assert pixels_of(image).shape == (2 * image.height, 2 * image.width, 3)


def test_a_grid_names_what_is_missing_and_which_boxes_it_draws() -> None:
    box = Box.of_pixels([10, 20, 500, 40], 100, 50)
    rows = [("r", "", [overlay.Cell(scene(), "x", boxes=[box]), overlay.Cell(None, "x", missing="gone with the disk")])]
    grid = overlay.grid(["a", "b"], rows, caption="c")
    assert grid.legend == ("truth",)
    assert "gone with the disk" in Page("t", [Section("s", [grid])]).html()
    assert box == Box(0.1, 0.4, 1.0, 0.8)
    assert box.corners() == (100.0, 400.0, 900.0, 400.0)


def test_small_images_are_enlarged_with_their_pixels_kept() -> None:
    checks = np.indices((8, 8)).sum(axis=0) % 2 * 255
    big = pixels_of(overlay.plain(np.repeat(checks[..., None], 3, axis=2).astype(np.uint8), quality=95))
    assert big.shape == (400, 400, 3)
    grey = big.mean(axis=2)
    assert ((grey < 60) | (grey > 195)).mean() > 0.95


def test_pixels_are_bytes() -> None:
    with pytest.raises(ValueError, match="uint8"):
        jpeg(np.zeros((4, 4, 3)))


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_from_disk_in_a_browser(tmp_path: Path, scheme: Any) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    path = everything(EVIL).write(tmp_path / "index.html")
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"], timeout=120_000)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("dialog", lambda d: complaints.append(d.message) or d.dismiss())
        page.on("requestfailed", lambda r: complaints.append(r.url[:200]))
        page.goto(path.as_uri())
        assert page.title() == EVIL
        assert min(page.evaluate("Array.from(document.images, i => i.naturalWidth)")) > 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert complaints == []
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) == (scheme == "light")
