"""Guided feature inversion behind the registry's one signature."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from stages.baselines.query import Query
from stages.baselines.registry import Setting
from stages.gfi.background import blurred, check_background, noise
from stages.gfi.explainer import Explainer, Precision, check_precision
from stages.gfi.layers import AUTO
from stages.gfi.recipe import Recipe, recipe

_CHANGES = {field.name for field in fields(Recipe)} - {"preset"}


class Gfi:
    """Masks of each (image, class) at the input's resolution. ``gfi:LAYER`` makes the mask of another layer.

    Options: ``preset`` ("paper", "authors"), ``background`` ("blur", "mean", "noise"), ``inversion_layer``,
    ``precision`` ("float32", "bfloat16"; float64 where the images are), and any field of `stages.gfi.recipe.Recipe`.
    The image at its own resolution is not at hand here, so the authors' blur is taken of the input. A mask that left
    the finite numbers is NaN everywhere: no answer.
    """

    name = "gfi"
    layers: tuple[str, ...] = ()  # it cuts a copy of the network itself, with batch norms folded in

    def __init__(
        self,
        mask_layer: str = AUTO,
        *,
        preset: str = "paper",
        background: str = "blur",
        inversion_layer: str = AUTO,
        precision: Precision = "float32",
        **changes: Any,
    ) -> None:
        unknown = set(changes) - _CHANGES
        if unknown:
            raise ValueError(f"gfi has no option {sorted(unknown)[0]!r}: it has {', '.join(sorted(_CHANGES))}")
        if "steps" in changes:
            changes["steps"] = tuple(changes["steps"])
        check_background(background)
        check_precision(precision)
        self.precision: Precision = precision
        self.mask_layer, self.inversion_layer, self.background = mask_layer, inversion_layer, background
        self.recipe = recipe(preset, **changes)
        inversion, of_class = self.recipe.steps
        passes = float(inversion + 2 * of_class)
        self.passes = (passes + 3, passes)
        self._explainer: tuple[object, Explainer] | None = None

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        return ()

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> Gfi:
        return cls(layer or AUTO, **getattr(setting, "options", {}).get(cls.name, {}))

    def maps(self, query: Query) -> torch.Tensor:
        explainer = self._ready(query)
        begun = explainer.begin(query.x, self._background(query))
        found = []
        for targets in query.targets.unbind(dim=1):
            answer = explainer.answer(begun, targets)
            mask = begun.problem.mask(answer.w)[:, 0].float()
            finite = torch.isfinite(answer.w).all(dim=1) & torch.isfinite(answer.kept_after)
            found.append(torch.where(finite.view(-1, 1, 1), mask, torch.nan))
        return torch.stack(found, dim=1)

    def _background(self, query: Query) -> torch.Tensor:
        if self.background == "blur":
            return blurred(query.x)
        if self.background == "mean":
            return torch.zeros_like(query.x)
        return noise(query.seed, query.keys, query.x.shape[1:]).to(query.x)

    def _ready(self, query: Query) -> Explainer:
        """Built at the first query: networks are only known then. A smaller last batch needs no other."""
        module = query.cut.graph.module
        if self._explainer is None or self._explainer[0] is not module:
            explainer = Explainer(
                module,
                query.x[:1],
                self.recipe,
                inversion_layer=self.inversion_layer,
                mask_layer=self.mask_layer,
                precision="float64" if query.x.dtype == torch.float64 else self.precision,
            )
            self._explainer = (module, explainer)
        return self._explainer[1]
