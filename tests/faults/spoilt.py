"""Valid files made wrong, for fuzzing: bytes cut, doubled and flipped, values of JSON and YAML swapped for others."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = st.sampled_from(
    [-1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.5, 1e-320, float("inf"), float("nan")]
)
_TEXTS = ["", " ", "\x00", "../../etc/passwd", "/etc/passwd", "http://127.0.0.1:9/x", "file:///etc/passwd", "é" * 300]
_TEXTS += ["a" * 5000, "\ud800", "nan", "1e999", "<script>", "${HOME}", "~", "%s", "\\", "*", "[", "null"]
ODD_TEXTS = st.sampled_from(_TEXTS)
SCALARS = st.one_of(st.none(), st.booleans(), ODD_NUMBERS, ODD_TEXTS, st.integers(), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda part: st.one_of(st.lists(part, max_size=3), st.dictionaries(ODD_TEXTS, part, max_size=3)),
    max_leaves=5,
)


@st.composite
def spoilt_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with none to four changes."""
    data = bytearray(whole)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 4]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "drop", "double", "insert", "swap"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + draw(st.integers(1, 64))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 256))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
            case _:
                data[at : at + 4] = draw(
                    st.sampled_from([b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"{}[]", b"\n\n"])
                )
    return bytes(data)


@st.composite
def spoilt_values(draw: st.DrawFn, whole: Any) -> Any:
    """Nested lists and mappings with none to three values, keys or entries changed."""
    root = [copy.deepcopy(whole)]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        at, place = root, 0
        while isinstance(at[place], (dict, list)) and at[place] and draw(st.integers(0, 9)):
            inner = at[place]
            at, place = (
                inner,
                draw(st.sampled_from(sorted(inner, key=str) if isinstance(inner, dict) else range(len(inner)))),
            )
        match draw(st.sampled_from(["other", "other", "gone", "renamed", "twice"])):
            case "gone" if at is not root:
                del at[place]
            case "renamed" if isinstance(at, dict):
                at[draw(ODD_TEXTS)] = at.pop(place)
            case "twice" if isinstance(at, list) and at is not root:
                at.append(copy.deepcopy(at[place]))
            case _:
                at[place] = draw(VALUES)
    return root[0]
