"""How plots are drawn: fonts, colours, and a canvas that leaves nothing open.

No pyplot, so there is no registry of figures to empty. The ink follows the reader's light or dark scheme through a
media query inside the SVG. Same input, same bytes: salts and dates are fixed.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from PIL import Image

from pipeline.report.images import DataImage, png, svg
from pipeline.report.wording import printable

# Three inks that nothing else uses: the dark scheme swaps them by their very value.
INK, SOFT, HAIR = "#1d232b", "#5b6571", "#dfe3e8"
_DARK = {INK: "#e4e8ed", SOFT: "#a3adb8", HAIR: "#333b45"}
# Told apart with any colour vision and on both grounds.
PALETTE = ("#2f6fb7", "#d9601a", "#2b8f6b", "#b04f93", "#c39a13", "#4aa5c9", "#7c6553", "#8a929c")
_DPI = 72.0
_RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": 11.0,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11.0,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": HAIR,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a class name is a dollar
    "svg.fonttype": "path",
    "svg.hashsalt": "raylens",
    "axes.unicode_minus": True,
}


def colours(names: Sequence[str], fixed: Mapping[str, str] | None = None) -> dict[str, str]:
    """A colour per name, the same in every plot of a page; ``fixed`` ones first, the rest from what is left."""
    chosen = {n: c for n, c in (fixed or {}).items() if n in names}
    free = [c for c in PALETTE if c not in chosen.values()] or list(PALETTE)
    others = [n for n in names if n not in chosen]
    return chosen | {name: free[i % len(free)] for i, name in enumerate(others)}


def render(paint: Callable[[Canvas], None], width: float, height: float, *, raster: bool = False) -> DataImage:
    """Run ``paint`` on a fresh canvas of width x height CSS pixels -> SVG, or PNG at 2x with ``raster``."""
    with mpl.rc_context(_RC), warnings.catch_warnings():
        # DejaVu lacks some scripts: their letters show as boxes in the plot and in full in the tables.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph")
        canvas = Canvas(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
        buffer = io.BytesIO()
        if raster:
            FigureCanvasAgg(canvas)
            paint(canvas)
            _clean(canvas)
            canvas.savefig(buffer, format="png", dpi=2 * _DPI)
        else:
            FigureCanvasSVG(canvas)
            paint(canvas)
            _clean(canvas)
            canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        canvas.clear()
    if raster:
        return png(np.asarray(Image.open(buffer).convert("RGB")))
    return svg(_follow_scheme(buffer.getvalue().decode("utf-8")), width, height)


def _clean(canvas: Canvas) -> None:
    """Fonts refuse what is no text; tick labels, which exist only while drawing, come through :func:`shorten`."""
    for label in canvas.findobj(Text):
        if isinstance(label, Text):
            label.set_text(printable(label.get_text()))


def _follow_scheme(text: str) -> str:
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    return text.replace("</metadata>", f"</metadata>{style}", 1)
