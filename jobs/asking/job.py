"""The asking job: an agent is trained to ask for what it needs, then asks about every image of a dataset."""

from __future__ import annotations

from jobs.asking import evaluate
from jobs.asking.config import ANSWERED, ASK, TRAIN, AskingConfig, training_of
from jobs.asking.train import AskingTrainer
from jobs.sections import source
from pipeline.engine import Outcome, execute
from pipeline.options import Options
from pipeline.steps import Job, Measure, Reduce, Step, Train
from stages.asking.answered import Answered, AnsweredConfig
from stages.asking.ask import Ask, AskConfig


def build(config: AskingConfig) -> Job:
    """The job's graph: the training, and what stands on it."""
    data = config.data
    given = {"train": data.train, "tune": data.tune, "ask": data.ask if config.task != "train" else None}
    sources = {name: source(split) for name, split in given.items() if split is not None}
    if config.task == "evaluate" and data.segmented is not None:
        sources["segmented"] = evaluate.segmented(data.segmented)
    learnt_from = tuple(name for name in ("train", "tune") if name in sources)
    steps: list[Step] = [Train(TRAIN, AskingTrainer(training_of(config)), learnt_from)]
    if config.task == "evaluate":
        drawn, label = "segmented" in sources, config.label
        training, side = training_of(config), config.learn.side
        steps += evaluate.steps(config.evaluate, training, side, TRAIN, learnt_from, drawn, label)
    if config.task != "train":
        stage = Ask(AskConfig(config.preprocess, **config.ask.model_dump()))
        steps.append(Measure(ASK, stage, ("ask",), trained={"agent": TRAIN}))
        steps.append(Reduce(ANSWERED, Answered(AnsweredConfig(config.problem.hints)), ASK, label=config.label))
    return Job("asking", config.model_dump(mode="json"), sources, tuple(steps), limits=config.images)


def run(config: AskingConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end and write its report; a rerun goes on where it stopped."""
    options = options or config.options()
    outcome = execute(build(config), run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.asking.gather import write_report as write

    return write(run_url)
