"""CHIP's sparse channel weights: one lasso per layer and class, solved from the statistics and certified.

For the fit of class c, lambda = lambda_rel * max_k |b_c,k|; at lambda_rel >= 1 every weight is zero. Every row carries
the violation of the optimality conditions and the duality gap of its weights, computed from the statistics afresh.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from stages.chip import lasso
from stages.chip.admm import Admm
from stages.chip.admm_batched import batched_path
from stages.chip.newton import newton
from stages.chip.statistics import Block, ChipStatistics, StatisticsConfig
from stages.chip.sums import packed_places, unpack
from stages.schema import column

_PATH_END = 1e-4  # the smallest step of a path that ends at lambda = 0
_PARTS = ("", "heldout_")
NO_FIT = ("no_fit_images", "no_signal")  # flags of weights that are zero because nothing was fitted
_NUMBERS = ("images", "effective_images", "samples", "weight", "b", "gram", "gg", "g1")


@dataclass(frozen=True)
class SolveConfig:
    """``statistics`` is the configuration of the statistics solved from; ``classes`` a subset of their class ids.

    ``path`` lambdas (0 = only one) fall geometrically from lambda_rel = 1 to ``lambda_rel``; with ``choose`` the one
    with the best held-out R^2 is taken instead of the last. ``rho_rel`` (of trace/K), ``over_relaxation`` and
    ``polish`` steer ADMM. ``tolerance`` bounds KKT violation / lambda.
    """

    statistics: StatisticsConfig
    solver: Literal["admm", "newton"] = "admm"
    lambda_rel: float = 0.01
    path: int = 0
    choose: bool = False
    rho_rel: float = 0.1
    over_relaxation: float = 1.6
    tolerance: float = 1e-9
    polish: bool = True
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.solver not in ("admm", "newton"):
            raise ValueError(f"solver: {self.solver!r} is none of admm, newton")
        if not self.lambda_rel >= 0:
            raise ValueError(f"lambda_rel = {self.lambda_rel}: it is a share of max|b|, 0 or more (0.01 is usual)")
        if not 1 <= self.over_relaxation < 2 or not self.rho_rel > 0 or not self.tolerance > 0:
            raise ValueError("over_relaxation lies in [1, 2), rho_rel and tolerance are positive")
        if self.classes is not None and not self.classes:
            raise ValueError("classes: the list is empty (leave it out for all classes)")
        known = range(self.statistics.classes)
        wrong = [c for c in self.classes or () if c not in known]
        if wrong:
            raise ValueError(f"classes: class {wrong[0]} does not exist, the network has classes 0 to {len(known) - 1}")

    @property
    def chooses(self) -> bool:
        """Whether held-out images choose lambda: their R^2 is then the best of many, no independent check."""
        return self.choose and len(self.lambdas_rel()) > 1 and self.statistics.holdout > 0

    def lambdas_rel(self) -> list[float]:
        """The falling lambdas to solve for, relative to max|b|; the last is ``lambda_rel``."""
        if self.path < 2 or self.lambda_rel >= 1:
            return [self.lambda_rel]
        if self.lambda_rel == 0:
            return [*np.geomspace(1, _PATH_END, self.path - 1).tolist(), 0.0]
        return [*np.geomspace(1, self.lambda_rel, self.path)[:-1].tolist(), self.lambda_rel]


class ChipSolve:
    """The aligned reduction from statistics rows to weights; block i solves the classes of part i of the statistics."""

    version = 1
    aligned = True
    accelerated = True  # takes a GPU where the cluster has one
    columns: Sequence[str] = ["layer", "class_id", *(f"{part}{name}" for part in _PARTS for name in _NUMBERS)]

    def __init__(self, config: SolveConfig) -> None:
        self.config = config
        self._upstream = ChipStatistics(config.statistics)

    @property
    def schema(self) -> pa.Schema:
        f64, i64 = pa.float64(), pa.int64()
        step = [("lambda_rel", f64), ("nonzeros", i64), ("r2_heldout", f64), ("r2_heldout_centred", f64)]
        held = "held-out images" + ("; they chose lambda, so it is too good" if self.config.chooses else "")
        return pa.schema(
            [
                column("layer", pa.string(), "layer as asked in the config"),
                column("class_id", pa.int32(), "class index of the network"),
                column("lambda", f64, "weight of the l1 penalty"),
                column("lambda_rel", f64, "lambda / max|b|"),
                column("w", pa.list_(f64), "channel weights", shape="[channels]"),
                column("nonzeros", i64, "channels with a weight"),
                column("objective", f64, "half the weighted squared error + lambda ||w||_1"),
                column("kkt", f64, "largest violation of the optimality conditions / lambda (/ max|b| at lambda = 0)"),
                column("gap", f64, "duality gap / objective"),
                column("iterations", i64, "iterations of the solver down to this lambda"),
                column("solver", pa.string(), "admm | newton | direct (lambda = 0)"),
                column("polished", pa.bool_(), "w is the exact solution on the support that ADMM found"),
                column("r2_fit", f64, "1 - weighted squared error / sum h f g^2, fit images; null where undefined"),
                column("r2_fit_centred", f64, "the same against the weighted mean of g"),
                column("r2_heldout", f64, f"r2_fit on the {held}"),
                column("r2_heldout_centred", f64, f"r2_fit_centred on the {held}"),
                column("images", i64, "fit images that list the class", unit="images"),
                column("effective_images", f64, "(sum f)^2 / sum f^2 over the fit images", unit="images"),
                column("samples", i64, "perturbed networks of the fit images", unit="samples"),
                column("underdetermined", pa.bool_(), "gates x effective images < channels: do not trust the fit"),
                column("flag", pa.string(), "empty, or why w says nothing: no_fit_images | no_signal | not_converged"),
                column(
                    "path",
                    pa.list_(pa.struct([*step, ("kkt", f64), ("gap", f64)])),
                    "the lambdas solved for on the way, falling; empty without a path",
                ),
            ]
        )

    def blocks(self) -> list[Block]:
        return self._upstream.blocks()

    def state_bytes(self, block: Block) -> int:
        return 2 * self._upstream.state_bytes(block)  # the rows, and the symmetric matrices made of them

    def start(self, block: Block) -> list[pa.Table]:
        return []

    def add(self, state: list[pa.Table], table: pa.Table) -> list[pa.Table]:
        return [*state, table]

    def merge(self, left: list[pa.Table], right: list[pa.Table]) -> list[pa.Table]:
        return [*left, *right]

    def finish(self, block: Block, state: list[pa.Table]) -> pa.Table:
        problems = [p for table in state for p in problems_of(table) if self._wanted(p.class_id)]
        rows = [self._row(p, path) for p, path in zip(problems, self._paths(problems), strict=True)]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _wanted(self, class_id: int) -> bool:
        return self.config.classes is None or class_id in self.config.classes

    def _paths(self, problems: list[Problem]) -> list[list[lasso.Solution]]:
        """The solutions of every problem: on a GPU ADMM takes many classes at once, what it leaves goes singly."""
        config = self.config
        lambdas = [self._lambdas(p) for p in problems]
        inner: lasso.Inner = newton
        if config.solver == "admm":
            inner = Admm(config.rho_rel, config.over_relaxation, config.polish)
            if torch.cuda.is_available() and config.polish and problems:
                return batched_path(problems, lambdas, inner, config.tolerance, torch.device("cuda"))
        return [
            list(lasso.solve_path(p.gram, p.b, falling, inner, config.tolerance))
            for p, falling in zip(problems, lambdas, strict=True)
        ]

    def _lambdas(self, problem: Problem) -> list[float]:
        top = float(np.abs(problem.b).max(initial=0.0))
        return [rel * top for rel in self.config.lambdas_rel()]

    def _row(self, problem: Problem, path: list[lasso.Solution]) -> dict[str, Any]:
        config, rels = self.config, self.config.lambdas_rel()
        steps = []
        for rel, solution in zip(rels, path, strict=True):
            certificate = lasso.certify(problem.gram, problem.b, problem.gg, solution.lam, solution.w)
            scores = problem.r2(solution.w, held_out=True)
            steps.append((rel, solution, certificate, scores))
        chosen = len(steps) - 1
        if config.choose and steps[-1][3][0] is not None:
            chosen = int(np.argmax([-np.inf if scores[0] is None else scores[0] for *_, scores in steps]))
        rel, solution, certificate, (r2_heldout, r2_heldout_centred) = steps[chosen]
        r2_fit, r2_fit_centred = problem.r2(solution.w, held_out=False)
        flag = "" if certificate.kkt <= max(1e-6, 10 * config.tolerance) else "not_converged"
        if not problem.images or not np.any(problem.b):
            flag = "no_signal" if problem.images else "no_fit_images"
        return {
            "layer": problem.layer,
            "class_id": problem.class_id,
            "lambda": solution.lam,
            "lambda_rel": rel,
            "w": solution.w,
            "nonzeros": int(np.count_nonzero(solution.w)),
            "objective": certificate.objective,
            "kkt": certificate.kkt,
            "gap": certificate.gap,
            "iterations": sum(s.iterations for _, s, *_ in steps[: chosen + 1]),
            "solver": config.solver if rel > 0 else "direct",
            "polished": solution.polished,
            "r2_fit": r2_fit,
            "r2_fit_centred": r2_fit_centred,
            "r2_heldout": r2_heldout,
            "r2_heldout_centred": r2_heldout_centred,
            "images": problem.images,
            "effective_images": problem.effective_images,
            "samples": problem.samples,
            "underdetermined": config.statistics.gates * problem.effective_images < len(problem.b),
            "flag": flag,
            "path": [
                {
                    "lambda_rel": r,
                    "nonzeros": int(np.count_nonzero(s.w)),
                    "r2_heldout": scores[0],
                    "r2_heldout_centred": scores[1],
                    "kkt": c.kkt,
                    "gap": c.gap,
                }
                for r, s, c, scores in (steps if config.path > 0 else [])
            ],
        }

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Per layer: classes, how many are flagged or underdetermined, the worst certificates, medians of R^2."""
        found: dict[str, Any] = {}
        small = table.drop_columns(["w", "path"]).to_pylist()
        for layer in self.config.statistics.layers:
            rows = [row for row in small if row["layer"] == layer]
            if rows:
                found[layer] = {
                    "classes": len(rows),
                    "flagged": sum(bool(row["flag"]) for row in rows),
                    "underdetermined": sum(row["underdetermined"] for row in rows),
                    "max_kkt": max(row["kkt"] for row in rows),
                    "max_gap": max(row["gap"] for row in rows),
                    **{f"median_{name}": _median(rows, name) for name in ("nonzeros", "images", "r2_fit")},
                    **{f"median_{name}": _median(rows, name) for name in ("r2_heldout", "r2_heldout_centred")},
                }
        return {
            "solver": self.config.solver,
            "lambda_rel": self.config.lambda_rel,
            "r2_heldout_chose_lambda": self.config.chooses,  # then the held-out R^2 is no independent check
            "layers": found,
        }


@dataclass(frozen=True)
class Problem:
    """One row of the statistics: b float64 [K], packed matrices [K(K+1)/2], and the same of the held-out images."""

    layer: str
    class_id: int
    images: int
    effective_images: float
    samples: int
    b: np.ndarray
    packed: tuple[np.ndarray, np.ndarray]
    b_parts: tuple[np.ndarray, np.ndarray]
    totals: tuple[tuple[float, float, float], tuple[float, float, float]]  # gg, g1, weight of each part

    @functools.cached_property
    def gram(self) -> np.ndarray:
        return unpack(self.packed[0], len(self.b))

    @property
    def gg(self) -> float:
        return self.totals[0][0]

    def r2(self, w: np.ndarray, *, held_out: bool) -> tuple[float | None, float | None]:
        """(uncentred, centred) share of the weighted variation of g that w z explains; None where there is none."""
        gg, g1, weight = self.totals[held_out]
        support = np.flatnonzero(w)
        square = self.packed[held_out][packed_places(len(w))[np.ix_(support, support)]]
        error = gg - 2 * float(self.b_parts[held_out] @ w) + float(w[support] @ square @ w[support])
        around_mean = gg - g1 * g1 / weight if weight > 0 else 0.0
        uncentred = 1 - error / gg if gg > 0 else None
        return uncentred, (1 - error / around_mean if around_mean > 1e-12 * gg else None)


def problems_of(table: pa.Table) -> list[Problem]:
    """The problems of a table of statistics, in its order."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    found = []
    for i in range(table.num_rows):
        value = {name: columns[name][i] for name in columns}
        b, held = (value[f"{part}b"].values.to_numpy() for part in _PARTS)
        totals = [tuple(float(value[f"{part}{name}"].as_py()) for name in ("gg", "g1", "weight")) for part in _PARTS]
        found.append(
            Problem(
                layer=value["layer"].as_py(),
                class_id=value["class_id"].as_py(),
                images=value["images"].as_py(),
                effective_images=value["effective_images"].as_py(),
                samples=value["samples"].as_py(),
                b=b,
                packed=(value["gram"].values.to_numpy(), value["heldout_gram"].values.to_numpy()),
                b_parts=(b, held),
                totals=(totals[0], totals[1]),  # type: ignore[arg-type]
            )
        )
    return found


def _median(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return float(np.median(values)) if values else None
