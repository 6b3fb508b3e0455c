"""A measuring step of a run: its plans, the shards that are still to be made, and what is there in the end."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pipeline import plan as plans
from pipeline.errors import RaylensError
from pipeline.events import Events
from pipeline.loading import input_digests
from pipeline.options import Options
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.quarantine import drop_quarantine
from pipeline.run import Run
from pipeline.shards import Receipt, Shards
from pipeline.steps import Job, Measure
from pipeline.storage import Folder
from pipeline.tasks import Shard, Work


@dataclasses.dataclass(frozen=True)
class MeasureStep:
    """One measuring step of a job in its run."""

    step: Measure
    job: Job
    run: Run
    options: Options
    events: Events
    fields: Mapping[str, Any]  # what its fingerprint is made of
    tables: Mapping[str, tuple[str, int]]  # as ``Work`` has them
    trained: Mapping[str, tuple[str, str]]

    @functools.cached_property
    def mark(self) -> str:
        """Its fingerprint."""
        return plans.fingerprint(dict(self.fields))

    @functools.cached_property
    def folders(self) -> dict[str, Folder]:
        """Where its shards lie, by split."""
        keyed = self.mark if self.job.keyed(self.step.name) else ""
        return {s: self.run.step_folder(self.step.name, split=s, fingerprint=keyed) for s in self.step.splits}

    def go(self, runner: Callable[[], Any]) -> tuple[list[tuple[str, Receipt]], str]:
        """Make what is not there; the receipts of all, and where the time went, in words, unless all was there.

        ``runner``: asked for when there is work; Ray is joined then.
        """
        name, folders = self.step.name, self.folders
        work = self._planned(runner)
        todo: list[Shard] = []
        found: list[tuple[str, Receipt]] = []
        for split, plan in work.plans.items():
            shards = Shards(folders[split], plan.shards)
            good = self._good(split, shards)
            todo += [(split, shard) for shard in range(plan.shards) if shard not in good]
            found += [(split, receipt) for shard, receipt in good.items() if shard < plan.shards]
            if len(good) < plan.shards:
                shards.sweep()
        told = ""
        if todo:
            total, count = sum(p.keys for p in work.plans.values()), sum(p.shards for p in work.plans.values())
            done = sum(r.total for _, r in found)
            with Progress(name, total, shards=count, done=done, shards_done=len(found)) as progress:
                made, spent = runner().run(work, todo, progress)
            price = self.options.resources.price_per_hour
            for line in spent.lines(price):
                self.options.say(f"step '{name}': {line}")
            self.events.say("spent", step=name, **spent.to_dict(price))
            told = "; ".join(spent.lines(price))
            found += [(split, receipt) for (split, _), receipt in made.items()]
            for split, plan in work.plans.items():
                shards = Shards(folders[split], plan.shards)
                shards.summarize(sum(s == split for s, _ in found))
                shards.sweep(orphans=True)  # a killed driver's worker may have died after this one began
        self._check_totals(work.plans, found)
        order = {split: i for i, split in enumerate(self.step.splits)}
        return sorted(found, key=lambda item: (order[item[0]], item[1].shard)), told

    def _planned(self, runner: Callable[[], Any]) -> Work:
        """The work with a plan for each split; where there is none, a micro-run makes one, on what will do the work."""
        name, folders, resources = self.step.name, self.folders, self.options.resources
        frozen = {split: plans.load(folder) for split, folder in folders.items()}
        for split, plan in frozen.items():
            if plan is not None:
                plans.refuse_other(plan, dict(self.fields), folders[split].path("plan.json"))
        work = Work(
            id=f"{name}-{self.mark[:8]}",
            step=self.step,
            keys_url=self.run.keys.url,
            folders={split: folder.url for split, folder in folders.items()},
            plans={},
            tables=self.tables,
            limits=self.job.limits,
            code_path=self.options.code_path,
            trained=self.trained,
            digests=input_digests(self.step.inputs, self.fields),
        )
        if None in frozen.values():
            self.options.say(f"step '{name}': a micro-run measures it, then its plan is frozen")
        settled: dict[str, Plan] = {}
        for split, plan in frozen.items():
            if plan is None:
                size, measured = runner().measure(work, split, resources.micro_batch)
                keys = len(self.run.key_table(split))
                new = plans.new_plan(name, split, dict(self.fields), keys, size, measured, resources.shard_rows)
                plan = plans.freeze(folders[split], new)
            settled[split] = plan
        return dataclasses.replace(work, plans=settled)

    def _good(self, split: str, shards: Shards) -> dict[int, Receipt]:
        """Shards that stand; those that do not, or are wanted again for their failed rows, are withdrawn."""
        name, say = self.step.name, self.options.say
        good, bad = shards.complete()
        for shard, why in sorted(bad.items()):
            say(f"step '{name}': shard {split}/{shard:05d} is made again: {why}")
            self.events.say("damaged", step=name, shard=f"{split}/{shard:05d}", why=why)
            shards.withdraw(shard)
        failed = {shard: receipt.rows["failed"] for shard, receipt in good.items() if receipt.rows.get("failed")}
        if not failed or not self.options.retry_failed:
            return good
        for shard in failed:
            drop_quarantine(shards.folder.child("quarantine"), shard)  # what was quarantined gets another chance
            shards.withdraw(shard)
        rows = f"{sum(failed.values()):,} failed row{'s' * (sum(failed.values()) != 1)}"
        say(f"step '{name}': {len(failed):,} shards of '{split}' are made again for {rows}")
        self.events.say("retry failed", step=name, split=split, shards=sorted(failed))
        return {shard: receipt for shard, receipt in good.items() if shard not in failed}

    def _check_totals(self, planned: Mapping[str, Plan], found: list[tuple[str, Receipt]]) -> None:
        """A row never vanishes: receipts must add up to the plan."""
        for split, plan in planned.items():
            rows = sum(r.total for s, r in found if s == split)
            if rows != plan.keys:
                raise RaylensError(
                    f"step '{self.step.name}' holds {rows:,} rows of split '{split}' for {plan.keys:,} keys",
                    where=self.folders[split].url,
                    cure="'raylens verify --repair RUN' and run again",
                )
