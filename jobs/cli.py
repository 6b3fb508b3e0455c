"""The command line: ``raylens chip CONFIG``, ``raylens status RUN`` and so on.

Nothing heavy is imported until a command needs it, so that ``raylens --help`` answers at once. Exit status: 0 complete,
1 failed, 2 bad usage or config, 3 done, but more rows failed than allowed; 130 when interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import sys
import time
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from jobs.commands.answer import answer
from jobs.commands.job import (
    JOBS,
    ConfigFile,
    Label,
    Only,
    RetryFailed,
    RunOption,
    Sets,
    Yes,
    as_sets,
    code_path,
    load,
    run_url,
)
from jobs.commands.submit import list_jobs, stop, submit
from pipeline.errors import RaylensError, UsageError
from pipeline.leaving import leave

_WATCH_S = 5.0
_CLEAR = "\033[H\033[2J"
_EXPORTS = ("coco-results", "coco", "voc", "yolo", "label-studio", "csv", "png")  # jobs.export.formats.FORMATS


class _Commands(TyperGroup):
    """Ends a command the way users are promised: one message, the right exit status, a near match for a typo."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RaylensError as error:
            if os.environ.get("RAYLENS_DEBUG") == "1":
                raise
            _fail(f"raylens: {error}", error.exit_code)
        except KeyboardInterrupt:
            _fail("stopped; run the same command again to resume", 130)
        except BrokenPipeError:  # `raylens status RUN | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as error:
            # Typer's unknown-option error offers no near match where the first letters differ.
            if (name := getattr(error, "option_name", None)) and hasattr(error, "possibilities"):
                known = [o for p in error.ctx.command.params for o in p.opts if o.startswith("--")]  # type: ignore[attr-defined]
                error.possibilities = error.possibilities or difflib.get_close_matches(name, known, n=1)
            raise


app = typer.Typer(
    name="raylens",
    cls=_Commands,
    help="What convolutional networks look at and how they decide, for whole datasets.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder: a path, s3://... or gs://...")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster ('auto', host:port, ray://...).")]
AllowFailed = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Share of rows that may fail.")]
Mode = Annotated[str | None, typer.Option(metavar="auto|inline|spread", help="How work is laid over the cluster.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _job_command(name: str) -> None:
    def command(
        config: ConfigFile,
        run: RunOption = None,
        sets: Sets = None,
        address: Address = None,
        only: Only = None,
        allow_failed: AllowFailed = None,
        mode: Mode = None,
        label: Label = None,
        yes: Yes = False,
        retry_failed: RetryFailed = False,
    ) -> None:
        module, settings = load(name, config, [*(sets or ()), *as_sets(label, address, allow_failed, mode)])
        url = run_url(run, settings)
        options = settings.options(
            only=tuple(only or ()), code_path=code_path(config), yes=yes, retry_failed=retry_failed
        )
        outcome = module.run(settings, url, options)
        _print(_show().totals_lines(outcome.totals))
        print(f"run folder {url}")
        raise typer.Exit(outcome.exit_code)

    app.command(name, help=JOBS[name][2])(command)


for _name in JOBS:
    _job_command(_name)


@app.command(help="What a job will do and cost, from a short measurement, without doing it.")
def plan(
    job: Annotated[str, typer.Argument(metavar="JOB", help=f"One of: {', '.join(JOBS)}.")],
    config: ConfigFile,
    run: RunOption = None,
    sets: Sets = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the measured kind.")] = 1,
    price: Annotated[float | None, typer.Option(min=0.0, help="Price of one worker for an hour.")] = None,
) -> None:
    priced = [] if price is None else [f"resources.price_per_hour={price}"]
    module, settings = load(job, config, [*(sets or ()), *priced])
    built = module.build(settings)
    from pipeline.preview import preview, preview_trainings
    from pipeline.steps import Measure, Reduce

    url = run or settings.run or f"memory://raylens-plan-{os.getpid()}"
    trainings = preview_trainings(built, url)  # first: one of other settings is refused before anything is measured
    found = preview(built, url, settings.options(code_path=code_path(config)), workers=workers)
    reductions = {}
    for step in built.steps:
        if isinstance(step, Reduce):
            blocks = step.reduction.blocks()
            reductions[step.name] = (len(blocks), max((step.reduction.state_bytes(b) for b in blocks), default=0))
    measuring = [step.name for step in built.steps if isinstance(step, Measure)]
    _print(_show().plan_lines(found, reductions, measuring, trainings))
    if more := getattr(module, "plan_lines", None):
        _print(["", *more(settings, built, found)])


app.command(help="Run a job on a Ray cluster: uploads the config and the code, follows the log.")(submit)
app.command(name="jobs", help="What was submitted to a cluster, and how it stands.")(list_jobs)
app.command(help="End a submitted job: it finishes the slice in hand; submitting the run again resumes it.")(stop)


@app.command(help="How far a run is: shards, rows by status, settings side by side, failed keys.")
def status(
    run: RunArgument,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every few seconds until it is complete.")
    ] = False,
) -> None:
    from pipeline.status import status as read

    while True:
        found = read(run)
        lines = [json.dumps(found.to_dict(), indent=1)] if as_json else _show().status_lines(found)
        _print([_CLEAR + lines[0], *lines[1:]] if watch and sys.stdout.isatty() else lines)
        if not watch or found.complete:
            return
        time.sleep(_WATCH_S)


@app.command(help="Check every byte of a run against its receipts, keys and plans; exit status 1 when any is bad.")
def verify(
    run: RunArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Withdraw bad shards: the next run makes them again.")
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Remove files that no receipt names.")] = False,
    as_json: AsJson = False,
) -> None:
    from pipeline.verify import verify as check

    found = check(run, repair=repair, clean=clean, say=lambda text: print(text, file=sys.stderr))
    _print([json.dumps(found.to_dict(), indent=1)] if as_json else _show().verify_lines(found))
    raise typer.Exit(0 if found.ok else 1)


@app.command(help="Merge a run's small shards into large Parquet files with a manifest, for those who read them.")
def compact(
    run: RunArgument,
    target_mb: Annotated[int, typer.Option("--target-mb", min=1, help="About so large.")] = 256,
) -> None:
    from pipeline.compact import compact as write

    found = write(run, target_bytes=target_mb * 2**20, say=lambda text: print(text, file=sys.stderr))
    _print(_show().compact_lines(found))


@app.command(help="Write the report of a run from what it holds.")
def report(run: RunArgument) -> None:
    from pipeline.run import Run

    name = str(Run(run).describe().get("job", ""))
    if name not in JOBS:
        raise UsageError(f"its job '{name}' has no report", where=run, cure=f"jobs with reports: {', '.join(JOBS)}")
    print(importlib.import_module(JOBS[name][0]).write_report(run))


@app.command(help="Write a run's boxes and masks for annotation tools: COCO, Pascal VOC, YOLO, Label Studio, CSV, PNG.")
def export(
    run: RunArgument,
    form: Annotated[str, typer.Option("--format", metavar="NAME", help=f"{', '.join(_EXPORTS)}.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="A new or empty folder on this machine.")],
    method: Annotated[str, typer.Option(help="Whose boxes; else the first of the run.")] = "",
    split: Annotated[str, typer.Option(help="Whose images; else eval.")] = "",
    threshold: Annotated[float | None, typer.Option(help="Of the map; else what the run chose.")] = None,
    score: Annotated[float, typer.Option(help="Leave out detections less probable than this.")] = 0.0,
    min_area: Annotated[float, typer.Option("--min-area", help="Leave out detections of fewer pixels.")] = 0.0,
) -> None:
    from jobs.export import Asked, lines
    from jobs.export import export as write

    asked = Asked(form, method, split, threshold, score, min_area)
    _print(lines(write(run, out, asked), out))


app.command(help="Ask a trained asking network about one image, and answer it with colours of your own.")(answer)


@app.command(help="Draw data, train a network on it, explain it: needs nothing from outside, ends with a report.")
def demo(
    run: Annotated[str, typer.Option("--run", metavar="URL", help="Where the demo goes.")] = "runs/demo",
    full: Annotated[bool, typer.Option("--full", help="More images and longer training.")] = False,
) -> None:
    raise typer.Exit(int(importlib.import_module("jobs.demo.run").run(run, full=full) or 0))


@app.command(help="Versions of Raylens and of what it stands on.")
def version() -> None:
    from pipeline.provenance import provenance

    found = provenance(argv=[])
    print(
        f"raylens {found['raylens'] or '(not installed)'}" + (f" ({found['commit'][:12]})" if found["commit"] else "")
    )
    print(f"python {found['python']}, " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()))


def main(argv: list[str] | None = None) -> NoReturn:
    """The console script: runs a command and exits with its status."""
    code = 0
    try:
        app(args=argv, prog_name="raylens")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - a fault of ours: its traceback, as Python shows it
        sys.excepthook(*sys.exc_info())
        code = 1
    leave(code)


def _fail(text: str, code: int) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)


def _show() -> Any:
    return importlib.import_module("jobs.show")


def _print(lines: list[str]) -> None:
    print("\n".join(lines))


if __name__ == "__main__":
    main()
