"""What a filters or svd run writes: said before it runs, refused where nobody wants so much, cut into shards."""

from __future__ import annotations

import dataclasses

from jobs.linear.config import LinearConfig
from jobs.show import columns, size
from pipeline.errors import UsageError
from pipeline.options import Options
from pipeline.run import Run
from pipeline.steps import Job, Measure, Source
from stages.linear.filter_sizes import FilterSizes, TripletSizes
from stages.linear.filters_stage import FiltersStage
from stages.linear.svd_stage import SvdStage

ROW_VALUES = 2**31 - 1  # numbers that one column of a shard can hold
SHARD_BYTES = 256e6  # a shard is in a worker's memory when it is written, three times over
SHARD_ROWS = 64
TRIPLET_ROWS = 4  # of a shard with triplets: those of one image can take a minute
Sizes = dict[str, FilterSizes | TripletSizes]


def sizes_of(job: Job) -> Sizes:
    """What each filters or svd step writes of an image, by the step's name."""
    stages = {step.name: step.stage for step in job.steps if isinstance(step, Measure)}
    return {n: s.sizes for n, s in stages.items() if isinstance(s, (FiltersStage, SvdStage)) and s.sizes is not None}


def size_lines(config: LinearConfig, sizes: Sizes, images: int) -> list[str]:
    """Tables of rows, columns, triplets and bytes by network, and whether the run would be refused."""
    filters = {_network(n): s for n, s in sizes.items() if isinstance(s, FilterSizes)}
    triplets = {_network(n): s for n, s in sizes.items() if isinstance(s, TripletSizes)}
    lines = _filter_lines(filters, images) if filters else []
    lines += _triplet_lines(triplets, images) if triplets else []
    if over := _too_large(config, sizes, images):
        lines += ["", f"'raylens linear' refuses that without --yes: {over}"]
    return lines


def _triplet_lines(sizes: dict[str, TripletSizes], images: int) -> list[str]:
    table = [
        (
            name,
            f"{s.k:,}",
            " x ".join(map(str, s.input)),
            " x ".join(map(str, s.output)),
            size(s.nbytes),
            size(s.nbytes * images),
        )
        for name, s in sizes.items()
    ]
    return columns(
        ("network", "triplets", "an eigen-input", "an eigen-output", "an image", f"{images:,} images"), table
    )


def _filter_lines(sizes: dict[str, FilterSizes], images: int) -> list[str]:
    table = [
        (
            name,
            f"{s.rows:,}{'' if s.bounded else ' (grid)'}",
            " x ".join(map(str, s.row_patch)),
            f"{s.columns:,}{'' if s.bounded else ' (grid)'}",
            " x ".join(map(str, s.column_patch)),
            f"{s.passes:,}",
            size(s.nbytes),
            size(s.nbytes * images),
        )
        for name, s in sizes.items()
    ]
    head = ("network", "rows", "a row", "columns", "a column", "probes", "an image", f"{images:,} images")
    return columns(head, table)


def affordable(config: LinearConfig, job: Job, run_url: str, options: Options) -> tuple[Job, Options]:
    """The job and how to run it, its sizes said; UsageError where it is too large and was not asked for twice.

    Counts the images before anything is written; the run freezes the very table that was counted.
    """
    sizes = sizes_of(job)
    if not sizes:
        return job, options
    job, images = _counted(job, run_url)
    for line in size_lines(config, sizes, images):
        options.say(line)
    _refuse_one_row(sizes)
    over = _too_large(config, sizes, images)
    if over and not options.yes:
        smaller = (
            "filters.places=grid, a smaller filters.size" if config.task == "filters" else "a smaller svd.k, svd.size"
        )
        raise UsageError(
            over,
            where=f"{config.task}.max_gb",
            cure=f"set {smaller} or data.images.limit; or raise {config.task}.max_gb, or give --yes if this is wanted",
        )
    if options.resources.shard_rows is None:
        most = TRIPLET_ROWS if any(isinstance(s, TripletSizes) for s in sizes.values()) else SHARD_ROWS
        rows = shard_rows(max(s.nbytes for s in sizes.values()), images, most)
        options = dataclasses.replace(options, resources=dataclasses.replace(options.resources, shard_rows=rows))
    return job, options


def shard_rows(image_bytes: float, images: int, most: int = SHARD_ROWS) -> int:
    """Images of a shard: as many as fit in a worker's memory, and at least 8 shards where there are 8 images."""
    return max(1, min(most, int(SHARD_BYTES // max(image_bytes, 1)), images // 8))


def _counted(job: Job, run_url: str) -> tuple[Job, int]:
    frozen = Run(run_url).key_table("images")
    if frozen.folder.exists("images.json"):
        return job, len(frozen)
    source = job.sources["images"]
    table = source.list()
    listed = Source(source.description, lambda: table)
    return dataclasses.replace(job, sources={**job.sources, "images": listed}), table.num_rows


def _too_large(config: LinearConfig, sizes: Sizes, images: int) -> str:
    total = images * sum(s.nbytes for s in sizes.values())
    limit = (config.filters if config.task == "filters" else config.svd).max_gb * 1e9
    if total <= limit:
        return ""
    what = "rows and columns" if config.task == "filters" else "singular triplets"
    return f"the {what} of {images:,} images take {size(total)}, the limit is {size(limit)}"


def _refuse_one_row(sizes: Sizes) -> None:
    for name, s in sizes.items():
        if max(s.numbers) > ROW_VALUES:
            raise UsageError(
                f"one image has {max(s.numbers):.2g} numbers, a row of a table holds {ROW_VALUES:.2g}",
                where=f"networks.{_network(name)}",
                cure="set filters.places=grid, or a smaller filters.size"
                if isinstance(s, FilterSizes)
                else "ask for fewer triplets, or a smaller size",
            )


def _network(step: str) -> str:
    return step.partition("_")[2]
