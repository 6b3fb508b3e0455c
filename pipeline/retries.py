"""What becomes of attempts that failed: tried again, taken apart, their killers quarantined, or the end of the step."""

from __future__ import annotations

import collections
import contextlib
import heapq
import time
from collections.abc import Iterable, Sequence

from pipeline.errors import RaylensError
from pipeline.events import Events
from pipeline.failures import UNREACHED, ShardFate, Verdict
from pipeline.key_table import KeyTable
from pipeline.meters import Meters
from pipeline.progress import Progress
from pipeline.quarantine import quarantines, write_quarantine
from pipeline.redaction import redact_urls
from pipeline.remote_errors import last_line
from pipeline.spent import Spent
from pipeline.storage import Folder, UnreachableError
from pipeline.tasks import Shard, Task, Work

_DEATHS_IN_A_ROW = 100  # without a commit in between: one bad row costs at most about 30
_ERRORS = 3  # of one shard: exceptions of the engine or the storage, which may pass


class Retries:
    """The attempts of one step that are to be made: first ones in ``first``, later ones when they are ``due``."""

    def __init__(
        self, work: Work, todo: Sequence[Shard], events: Events, progress: Progress, spent: Spent, meters: Meters
    ) -> None:
        self._work, self._events, self._progress, self._spent, self._meters = work, events, progress, spent, meters
        held = {split: quarantines(self._quarantine(split)) for split in {split for split, _ in todo}}
        self.first = [Task(split, shard, work=work.id, quarantined=held[split](shard)) for split, shard in todo]
        self._fates = {task.of: ShardFate(task) for task in self.first}
        self._errors: collections.Counter[Shard] = collections.Counter()
        self._delayed: list[tuple[float, int, Task]] = []
        self._ticket = self._deaths = 0

    def __len__(self) -> int:
        """Attempts that are put off."""
        return len(self._delayed)

    @property
    def pause(self) -> float:
        """Seconds until the next one is due."""
        return max(0.0, self._delayed[0][0] - time.monotonic()) if self._delayed else 0.0

    def due(self) -> list[Task]:
        """Those whose time has come, in its order."""
        found = []
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            found.append(heapq.heappop(self._delayed)[2])
        return found

    def committed(self) -> None:
        """A shard was finished."""
        self._deaths = 0

    def failed(self, task: Task, cause: Exception) -> None:
        """An exception that no row explains: the user's to mend, which is raised, or one that may pass."""
        if isinstance(cause, UnreachableError):
            fate = self._fates[task.of]
            verdict = fate.unreached(f"{cause.where}: {cause.what}" if cause.where else cause.what)
            if fate.missed in (1, UNREACHED):  # not each time: there may be many such shards
                self._progress.say(f"shard {task.name} is tried again for minutes: {verdict.note}")
            self._retry(task, verdict)
            return
        if isinstance(cause, RaylensError):
            raise cause from None
        self._errors[task.of] += 1
        why = f"{type(cause).__name__}: {last_line(cause)}"
        if self._errors[task.of] >= _ERRORS:
            raise RaylensError(
                f"shard {task.name} of step '{self._work.step.name}' failed {_ERRORS} times: {why}",
                cure="the whole traceback is in the run's events folder; what is committed is kept",
            ) from cause
        self._progress.say(f"shard {task.name} is tried again: {why}")
        self._later(self._fates[task.of].next_task({}), 1.0)

    def died(
        self,
        task: Task,
        why: str,
        inside: Sequence[int] | None,
        completed: Iterable[Sequence[int]],
        *,
        node_alive: bool,
        taken: bool,
    ) -> None:
        """A death on a living node inside a slice counts against that slice; everything else is free.

        ``taken``: preempted, or cut off.
        """
        fate = self._fates[task.of]
        for lo, hi in completed:
            fate.acquit((lo, hi))
        if inside is not None and node_alive and not taken:
            verdict = fate.died((inside[0], inside[1]))
        else:
            where = "its node is gone" if not node_alive else "between slices" if inside is None else "not by its rows"
            verdict = fate.lost(f"{why} ({where})")
        self.tell_death(task, why, inside, verdict.note, node_alive=node_alive)
        self._progress.say(f"a worker was lost in shard {task.name}: {verdict.note}")
        if node_alive and not taken:  # many nodes may go at once, which says nothing about the step
            self._deaths += 1
        if self._deaths > _DEATHS_IN_A_ROW:
            raise RaylensError(
                f"{self._deaths} workers of step '{self._work.step.name}' died and no shard was finished in between",
                cure="this is no single bad image: look at the nodes' memory and at the method, then run again",
            )
        self._retry(task, verdict)

    def tell_death(self, task: Task, why: str, inside: Sequence[int] | None, verdict: str, *, node_alive: bool) -> None:
        """For those who look at the events: which step, which shard, which row where it can be one."""
        self._meters.deaths.add(1)
        key = {}
        if inside is not None and inside[1] - inside[0] == 1:  # of several rows none is the one
            with contextlib.suppress(RaylensError, OSError):
                key = {"key": KeyTable(Folder(self._work.keys_url), task.split).names(inside[0], inside[0] + 1)[0]}
        self._events.say(
            "death",
            step=self._work.step.name,
            shard=task.name,
            **key,
            attempt=task.attempt,
            inside=inside,
            node_alive=node_alive,
            error=why,
            verdict=verdict,
        )

    def _retry(self, task: Task, verdict: Verdict) -> None:
        if verdict.action == "give up":
            raise RaylensError(
                f"shard {task.name} of step '{self._work.step.name}' is given up: {verdict.note}",
                cure="look at the nodes ('ray status') and at what cannot be reached; run again to go on, what is "
                "committed is kept",
            )
        quarantined = {}
        if verdict.quarantined is not None:
            quarantined = self._put_in_quarantine(task, verdict.quarantined)
        self._later(self._fates[task.of].next_task(quarantined), verdict.delay_s)

    def _put_in_quarantine(self, task: Task, position: int) -> dict[str, str]:
        key = KeyTable(Folder(self._work.keys_url), task.split).names(position, position + 1)[0]
        entry = {key: "quarantined: it alone killed its worker 3 times"}
        write_quarantine(self._quarantine(task.split), task.shard, entry)
        self._progress.say(f"{redact_urls(key)} is quarantined: it alone killed its worker 3 times")
        self._events.say("quarantine", step=self._work.step.name, shard=task.name, key=key)
        return entry

    def _quarantine(self, split: str) -> Folder:
        return Folder(self._work.folders[split]).child("quarantine")

    def _later(self, task: Task, delay_s: float) -> None:
        self._spent.retries += 1
        self._meters.retries.add(1)
        self._ticket += 1
        heapq.heappush(self._delayed, (time.monotonic() + delay_s, self._ticket, task))
