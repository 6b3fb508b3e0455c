"""CHIP's solvers against scikit-learn's Gram coordinate descent, one thread each, on the same problems.

    python tests/bench/admm.py [--quick] [--synthetic] [--classes 200] [--cache FOLDER]

With RAYLENS_TEST_DATA the problems are CHIP statistics of SqueezeNet's last layer (K = 512) on ImageNet images, every
class counted in every image (all-class mode); else of the same make: z = d * a with sparse a, tempered class weights.
Coordinate descent gets its own stopping rule (gap <= 1e-6 gg); ours must certify gap <= 1e-6 of the objective.
Times are CPU seconds of this thread, so that a busy machine does not change the ratios. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy and torch load their libraries
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

from stages.chip import lasso  # noqa: E402
from stages.chip.admm import Admm  # noqa: E402
from stages.chip.admm_batched import batched_path  # noqa: E402
from stages.chip.gates import checksums, draw_gates, gate_seeds  # noqa: E402
from stages.chip.newton import newton  # noqa: E402
from stages.chip.solve import ChipSolve, Problem, SolveConfig, problems_of  # noqa: E402
from stages.chip.statistics import ChipStatistics, StatisticsConfig  # noqa: E402

LAYER, K, GATES = "last_conv", 512, 100
PATH = np.geomspace(1, 0.01, 20)


def real_scores(images: int, classes: np.ndarray, folder: Path) -> tuple[np.ndarray, ...]:
    """a [S, K], f [S, C], g [S, N, C] of SqueezeNet on images spread over the classes of ImageNet."""
    from PIL import Image
    from safetensors.torch import load_file

    from pipeline.vision import torchvision

    network = torchvision.models.squeezenet1_0()
    weights = load_file(folder / "weights" / "squeezenet1_0.safetensors")
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    network.eval()
    conv = network.classifier[1]
    paths = sorted(p for p in (folder / "imagenet_sample").rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    paths = paths[:: max(1, len(paths) // images)][:images]
    gates = draw_gates(gate_seeds(0, "fit", [str(i) for i in range(len(paths))], LAYER), GATES, K)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found: list[tuple[np.ndarray, ...]] = []
    with torch.inference_mode():
        for path, d in zip(paths, gates, strict=True):
            pixels = np.array(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
            x = torch.from_numpy(pixels).permute(2, 0, 1) / 255
            spatial = network.features(((x - mean) / std)[None])[0].flatten(1)  # [K, 169]
            filters = conv.weight[:, :, 0, 0]
            f = (filters @ spatial + conv.bias[:, None]).relu().mean(1).softmax(0)
            g = []
            for some in d.float().split(10):
                gated = (some[:, :, None] * spatial).transpose(1, 2).reshape(-1, K)
                scores = torch.addmm(conv.bias, gated, filters.T).relu_().reshape(len(some), -1, 1000)
                g.append(scores.mean(1).softmax(1)[:, classes])
            found.append((spatial.mean(1).numpy(), f.numpy()[classes], torch.cat(g).numpy()))
    a, f, g = (np.stack([row[i] for row in found]) for i in range(3))
    return a, f, g


def drawn_scores(count: int) -> tuple[np.ndarray, ...]:
    """The same make without a network, 300 images: channels that fire together, of unlike strength, a quarter of them
    silent in an image; a softmax over 200 classes, so that few images speak for each; f tempered. The constants were
    tuned until sparsity and conditioning were like those of real problems, so figures of these say less."""
    rng = np.random.default_rng(0)
    images, classes = 300, max(200, count)
    strength = rng.lognormal(0, 1, K)
    together = rng.gamma(0.5, size=(images, 20)) @ rng.gamma(0.3, size=(20, K))
    a = strength * together * rng.lognormal(0, 0.3, size=(images, K)) * (rng.random((images, K)) < 0.75)
    a = (a / together.mean()).astype(np.float32)
    head = rng.normal(size=(classes, K)) / strength
    kept = np.linspace(0, classes - 1, count).astype(int)
    scale = 8 / (a @ head.T).std()
    f = softmax(scale / 3 * (a @ head.T))[:, kept]
    gates = draw_gates(gate_seeds(0, "fit", [str(i) for i in range(images)], LAYER), GATES, K).numpy()
    g = np.stack([softmax(scale * ((d * row) @ head.T))[:, kept] for d, row in zip(gates, a, strict=True)])
    return a, f, g


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def make_statistics(a: np.ndarray, f: np.ndarray, g: np.ndarray) -> tuple[StatisticsConfig, pa.Table, float]:
    """Through the reduction itself; the seconds it took."""
    images, classes = f.shape
    keys = [str(i) for i in range(images)]
    gates = draw_gates(gate_seeds(0, "fit", keys, LAYER), GATES, K)
    table = pa.table(
        {
            "key": keys,
            "split": ["fit"] * images,
            "classes": pa.array([np.arange(classes)] * images, pa.list_(pa.int32())),
            "f": pa.array(list(f), pa.list_(pa.float32())),
            f"a/{LAYER}": pa.array(list(a), pa.list_(pa.float32())),
            f"g/{LAYER}": pa.array([row.ravel() for row in g], pa.list_(pa.float32())),
            f"gates/{LAYER}": checksums(gates),
        }
    )
    config = StatisticsConfig((LAYER,), (K,), classes, gates=GATES, block_mb=1200)
    reduction = ChipStatistics(config)
    start = time.thread_time()
    parts = [reduction.finish(b, reduction.add(reduction.start(b), table)) for b in reduction.blocks()]
    return config, pa.concat_tables(parts), time.thread_time() - start


def coordinate_descent(problem: Problem, lambdas: np.ndarray) -> list[np.ndarray]:
    """scikit-learn's Gram solver, warm-started along the lambdas, without the overhead of its estimators."""
    from sklearn.linear_model import _cd_fast

    w, found = np.zeros(K), []
    y = np.array([np.sqrt(problem.gg)])  # only its square is used: the scale of the tolerance
    state = np.random.RandomState(0)
    for lam in lambdas:
        w = _cd_fast.enet_coordinate_descent_gram(
            w.copy(), lam, 0.0, problem.gram, problem.b, y, 1_000_000, 1e-6, state, False, False
        )[0]
        found.append(w)
    return found


def timed(
    problems: list[Problem], solve: Callable[[Problem, np.ndarray], list[np.ndarray]], rels: np.ndarray
) -> tuple[float, float, float]:
    """(seconds, worst KKT violation / lambda, worst relative gap) over all problems and lambdas."""
    seconds = kkt = gap = 0.0
    for problem in problems:
        lambdas = rels * np.abs(problem.b).max()
        start = time.thread_time()
        found = solve(problem, lambdas)
        seconds += time.thread_time() - start
        for lam, w in zip(lambdas, found, strict=True):
            certificate = lasso.certify(problem.gram, problem.b, problem.gg, lam, w)
            kkt, gap = max(kkt, certificate.kkt), max(gap, certificate.gap)
    return seconds, kkt, gap


def ours(inner: lasso.Inner) -> Callable[[Problem, np.ndarray], list[np.ndarray]]:
    def solve(problem: Problem, lambdas: np.ndarray) -> list[np.ndarray]:
        return [s.w for s in lasso.solve_path(problem.gram, problem.b, list(lambdas), inner, 1e-9)]

    return solve


def thousand_classes(config: StatisticsConfig, table: pa.Table) -> dict[str, float]:
    """Seconds to solve 1,000 rows as the job does, and the most memory this process ever held."""
    found: dict[str, float] = {}
    for solver in ("admm", "newton"):
        reduction = ChipSolve(SolveConfig(config, solver=solver))  # type: ignore[arg-type]
        start = time.thread_time()
        left = 1000
        while left:  # the classes of the table, again and again
            part = table.slice(0, min(left, 100))
            left -= reduction.finish(("", 0, 0), [part]).num_rows
        found[f"{solver}_1000_classes_s"] = time.thread_time() - start
    found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def on_gpu(problems: list[Problem]) -> dict[str, float]:
    """The batched ADMM on 1,000 problems of a GPU, upload included."""
    many = [problems[i % len(problems)] for i in range(1000)]
    grid = [[0.01 * float(np.abs(p.b).max())] for p in many]
    device = torch.device("cuda")
    batched_path(many[:8], grid[:8], Admm(), 1e-9, device)  # libraries load
    torch.cuda.synchronize()
    start = time.perf_counter()
    paths = batched_path(many, grid, Admm(), 1e-9, device)
    seconds = time.perf_counter() - start
    worst = max(lasso.certify(p.gram, p.b, p.gg, s[0].lam, s[0].w).kkt for p, s in zip(many, paths, strict=True))
    return {"gpu_1000_classes_s": seconds, "gpu_max_kkt": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 classes, 100 images")
    parser.add_argument("--synthetic", action="store_true", help="no network even where the data is there")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--cache", type=Path, help="folder that keeps the network's scores between runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    count, images = (20, 100) if asked.quick else (asked.classes, 400)
    data = os.environ.get("RAYLENS_TEST_DATA")
    real = bool(data) and not asked.synthetic
    if real:
        classes = np.linspace(0, 999, count).astype(int)
        kept = asked.cache / f"squeezenet-{images}-{count}.npz" if asked.cache else None
        if kept is not None and kept.exists():
            scores = tuple(np.load(kept)[name] for name in "afg")
        else:
            scores = real_scores(images, classes, Path(str(data)))
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.savez(kept, a=scores[0], f=scores[1], g=scores[2])
    else:
        scores = drawn_scores(count)
    config, table, statistics_s = make_statistics(*scores)
    problems = problems_of(table)
    single, result = np.array([0.01]), {}
    rows: dict[str, tuple[float, float, float]] = {}
    for label, solve in (("cd", coordinate_descent), ("admm", ours(Admm())), ("newton", ours(newton))):
        rows[label] = timed(problems, solve, single)
        rows[f"{label}_path"] = timed(problems, solve, PATH)
    for label, (seconds, kkt, gap) in rows.items():
        print(f"{label:12s} {seconds:9.3f} s   KKT/lambda {kkt:.1e}   gap {gap:.1e}")
        result[f"{label}_s"] = round(seconds, 4)
    result |= {} if asked.quick else thousand_classes(config, table)
    if torch.cuda.is_available():
        result |= on_gpu(problems)
    else:
        print("no GPU: seconds of 1,000 problems by batched ADMM and their largest KKT violation not measured")
    checked: dict[str, Any] = {
        "bench": "admm",
        "speedup": round(rows["cd"][0] / rows["admm"][0], 2),
        "newton_speedup": round(rows["cd"][0] / rows["newton"][0], 2),
        "path_speedup": round(rows["cd_path"][0] / rows["admm_path"][0], 2),
        "newton_path_speedup": round(rows["cd_path"][0] / rows["newton_path"][0], 2),
        "max_kkt": max(rows[r][1] for r in ("admm", "newton", "admm_path", "newton_path")),
        "max_gap": max(rows[r][2] for r in ("admm", "newton", "admm_path", "newton_path")),
        "problems": len(problems),
        "channels": K,
        "source": "squeezenet1_0" if real else "drawn",
        "statistics_s": round(statistics_s, 3),
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps(checked | result))


if __name__ == "__main__":
    main()
