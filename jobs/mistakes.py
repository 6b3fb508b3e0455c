"""What is wrong with a config, in the user's words: field, value, what is expected, the nearest valid name."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (put quotes around it)",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of fields",
    "model": "a mapping of fields",
    "is": "a mapping of fields",
}


def told(cls: type[BaseModel], error: dict[str, Any], sets: Sequence[str]) -> str:
    """One of pydantic's errors as: field, value, what is expected, nearest valid name."""
    kind, value = str(error["type"]), error["input"]
    shown, owners = _walk(cls, tuple(error["loc"]), kind == "extra_forbidden")
    field = ".".join(shown)
    start = "" if not field else f"{field}: "
    if kind == "extra_forbidden":
        names = sorted({name for owner in owners for name in owner.model_fields})
        near = difflib.get_close_matches(str(shown[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"the fields here are {', '.join(names)}"
        text = f"unknown field {field} = {_short(value)}; {hint}"
    elif kind == "missing":
        text = f"{start}is required and absent"
    elif kind in ("literal_error", "enum"):
        choices = [c.strip("'") for c in re.split(r", | or ", str(error["ctx"]["expected"]))]
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        text = f"{start}{_short(value)} is not one of {', '.join(choices)}{hint}"
    elif kind == "union_tag_invalid":
        choices = [c.strip("'") for c in str(error["ctx"]["expected_tags"]).split(", ")]
        near = difflib.get_close_matches(str(error["ctx"]["tag"]), choices, n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        name = str(error["ctx"]["discriminator"]).strip("'")
        text = f"{start}{name} '{error['ctx']['tag']}' is not one of {', '.join(choices)}{hint}"
    elif kind == "union_tag_not_found":
        text = f"{start}{error['ctx']['discriminator']!s} is required and absent"
    elif kind.rsplit("_", 1)[-1] in ("type", "parsing", "float", "of") and kind.split("_")[0] in _EXPECTED:
        text = f"{start}{_short(value)} is {kind_of(value)}, expected {_EXPECTED[kind.split('_')[0]]}"
    else:
        message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        message = re.sub(r"^Input should be", "should be", message)
        join = "." if re.match(r"\w+: ", message) and isinstance(value, dict) else ": "
        start = f"{field}{join}" if field else ""
        text = f"{start}{message}" if isinstance(value, dict) else f"{start}{_short(value)}: {message}"
    given = [s for s in sets if shown and _touches(s.partition("=")[0].strip(), field)]
    return f"{text} (from --set {given[-1]})" if given else text


def _touches(one: str, other: str) -> bool:
    """Whether one dotted path is the other or lies above or below it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _walk(cls: type[BaseModel], loc: tuple[Any, ...], unknown: bool) -> tuple[list[str], list[type[BaseModel]]]:
    """The field path of an error without pydantic's union tags, and the models that own its last name."""
    owners: list[type[BaseModel]] = [cls]
    shown: list[str] = []
    free = False  # the next name is a key of a plain mapping
    for position, name in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(name, int):
            shown.append(str(name))
            continue
        fields = [owner.model_fields[name] for owner in owners if name in owner.model_fields]
        if fields:
            if last and unknown:
                break
            shown.append(name)
            owners = [m for field in fields for m in _models(field.annotation)] or owners
            free = any(_is_mapping(field.annotation) for field in fields)
        elif free or (last and unknown):
            shown.append(str(name))
            free = False
        else:  # a tag of a union: narrow the owners where it names one
            named = [o for o in owners if o.__name__ == name or _tag(o) == name]
            owners = named or owners
    return shown, owners


def _tag(model: type[BaseModel]) -> Any:
    """The value of a discriminating Literal field."""
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is Literal and len(typing.get_args(field.annotation)) == 1:
            return typing.get_args(field.annotation)[0]
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [m for part in typing.get_args(annotation) for m in _models(part)]


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, Annotated):
        return any(_is_mapping(part) for part in typing.get_args(annotation))
    return annotation is dict or origin in (dict, Mapping)


def plain_kinds(annotation: Any) -> set[Any]:
    """The scalar types a field takes, through Optional, unions and Annotated."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return {kind for part in typing.get_args(annotation) for kind in plain_kinds(part)}
    if origin is Annotated:
        return plain_kinds(typing.get_args(annotation)[0])
    return {annotation} if annotation in (int, float, bool, str) else set()


def kind_of(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping of fields"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), type(value).__name__)


def _short(value: Any) -> str:
    text = repr(str(value)) if isinstance(value, str) else "empty" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
