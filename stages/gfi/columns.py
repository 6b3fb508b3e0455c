"""The columns of a GFI row. Lists run over the row's targets first."""

from __future__ import annotations

import pyarrow as pa

from stages.gfi.config import GfiConfig
from stages.schema import column


def schema(config: GfiConfig) -> pa.Schema:
    floats, half, ints = pa.list_(pa.float32()), pa.list_(pa.float16()), pa.list_(pa.int32())
    score = "probability of the class"
    steps = config.recipe.steps
    of_class = f"[targets, {steps[1]}]"
    used = {
        "mean": ("alphas", "alpha * mean, around all kept pixels"),
        "max": ("thresholds", "t * max, largest component"),
    }
    fields = [
        column("label", pa.int32(), "true class id; null if unknown"),
        column("predicted", pa.int32(), "class the network puts first for the image it was given"),
        column("predicted_clean", pa.int32(), "the same before an attack; null without one"),
        column("targets", ints, "classes explained", shape="[targets]"),
        column("asked", pa.list_(pa.string()), "where each comes from: an id, predicted, label(s)", shape="[targets]"),
        column("width", pa.int32(), "of the original image", unit="pixels"),
        column("height", pa.int32(), "of the original image", unit="pixels"),
        column("score", floats, f"{score}, whole image", shape="[targets]"),
        column("kept_before", floats, f"{score} in what the unoptimised mask keeps", shape="[targets]"),
        column("removed_before", floats, f"{score} in what the unoptimised mask removes", shape="[targets]"),
        column("kept_after", floats, f"{score} in what the mask keeps", shape="[targets]"),
        column("removed_after", floats, f"{score} in what the mask removes", shape="[targets]"),
        column("loss", floats, "loss before each step, inversion then class", shape=f"[targets, {sum(steps)}]"),
        column("kept_path", floats, "class score of the kept part, before each step", shape=of_class),
        column("removed_path", floats, "the same of the removed part", shape=of_class),
        column("zeros", floats, "share of channels whose weight is 0", shape="[targets]"),
        column("channels", pa.int32(), "of the mask layer"),
        column("w_count", ints, "weights above 0", shape="[targets]"),
        column("w_index", ints, "their channels, target after target"),
        column("w_value", floats, "their values"),
        column("mask", half, "at the features' resolution: see gfi.reading.full_mask", shape="[targets, h, w]"),
        column("mask_shape", ints, "h and w of the mask"),
        column("input_shape", ints, "height and width of the input, which the mask covers", unit="pixels"),
        column("upsampling", pa.string(), "how the mask is enlarged: scaled, enlarged (see stages.gfi.mask)"),
        column("flat", pa.list_(pa.bool_()), "the mask has no contrast: it is 0 everywhere", shape="[targets]"),
        column("peak", ints, "x and y of the mask's largest pixel; -1: flat", shape="[targets, x y]", unit="pixels"),
        column(
            "peak_distance",
            floats,
            "from there to the class's nearest box, if any; inf: flat, or all cropped away",
            shape="[targets]",
            unit="pixels",
        ),
        column("peak_distance_easy", floats, "the same without difficult boxes", shape="[targets]", unit="pixels"),
        column("iou/center", floats, "best IoU of centred boxes; NaN: no true box", shape="[targets, sizes]"),
    ]
    for rule, (grid, meaning) in used.items():
        shape = f"[targets, {grid}]"
        fields += [
            column(f"box/{rule}", ints, f"box of {meaning}", shape=f"{shape[:-1]}, x0 y0 x1 y1]", unit="pixels"),
            column(f"iou/{rule}", floats, f"its best IoU with a true box; NaN: none ({meaning})", shape=shape),
            column(f"iou/{rule}_before", floats, "the same for the unoptimised mask", shape=shape),
        ]
    told = {"alphas": config.alphas, "thresholds": config.thresholds, "center_sizes": config.center_sizes}
    return pa.schema(fields, metadata={name.encode(): " ".join(map(str, v)).encode() for name, v in told.items()})
