"""Events: whole JSON objects in whole files, and never a reason for a run to fail."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.events import Events
from pipeline.storage import Folder


def read(folder: Path) -> list[dict[str, Any]]:
    names = sorted((folder / "events").glob("*.jsonl"), key=lambda p: int(p.stem.rpartition("-")[2]))
    return [json.loads(line) for name in names for line in name.read_text().splitlines()]


def test_every_event_is_one_json_object_with_its_time_and_kind(tmp_path: Path) -> None:
    with Events(Folder(str(tmp_path)), "driver") as events:
        events.say("commit", step="sweep", shard=3)
        events.say("retry", error="line one\nline two", odd=Path("x"), nan=float("nan"), nested={"inf": [float("inf")]})
    first, second = read(tmp_path)
    assert datetime.fromisoformat(first["at"]).tzinfo is not None
    assert (first["kind"], first["step"], first["shard"]) == ("commit", "sweep", 3)
    assert (second["error"], second["odd"], second["nan"]) == ("line one\nline two", "x", "nan")
    assert second["nested"] == {"inf": ["inf"]}


def test_object_that_cannot_be_told_does_not_hurt(tmp_path: Path) -> None:
    class Mute:
        def __str__(self) -> str:
            raise ValueError("no")

    circle: list[Any] = []
    circle.append(circle)
    with Events(Folder(str(tmp_path)), "driver") as events:
        events.say("odd", what=Mute())
        events.say("circle", what=circle)
    assert [e["kind"] for e in read(tmp_path)] == ["odd", "circle"]


def test_files_roll_by_lines_and_by_time_while_the_driver_lives(tmp_path: Path) -> None:
    with Events(Folder(str(tmp_path)), "driver", roll_s=0.2, roll_lines=1000) as events:
        events.say("early")
        deadline = time.monotonic() + 120
        while not (tmp_path / "events" / "driver-0.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [e["kind"] for e in read(tmp_path)] == ["early"]
    with Events(Folder(str(tmp_path)), "other", roll_s=600, roll_lines=10) as events:
        for i in range(10):
            events.say("many", i=i)
        deadline = time.monotonic() + 120
        while not (tmp_path / "events" / "other-0.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "events" / "other-0.jsonl").exists()


def test_events_from_many_threads_are_all_there(tmp_path: Path) -> None:
    with Events(Folder(str(tmp_path)), "driver", roll_lines=7) as events:
        threads = [
            threading.Thread(target=lambda n=n: [events.say("tick", n=n, i=i) for i in range(50)]) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted((e["n"], e["i"]) for e in read(tmp_path)) == [(n, i) for n in range(4) for i in range(50)]


def test_driver_of_the_same_name_does_not_overwrite(tmp_path: Path) -> None:
    for kind in ("first", "second"):
        with Events(Folder(str(tmp_path)), "driver") as events:
            events.say(kind)
    assert [e["kind"] for e in read(tmp_path)] == ["first", "second"]


def test_storage_that_refuses_is_told_once_and_lines_are_written_when_it_works_again(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file in the way")
    told: list[str] = []
    events = Events(Folder(str(tmp_path)), "driver", roll_s=0.05, warn=told.append)
    events.say("before")
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    events.say("between")
    events.flush()
    assert len(told) == 1
    assert "the run goes on" in told[0]
    (tmp_path / "events").unlink()
    events.close()
    assert [e["kind"] for e in read(tmp_path)] == ["before", "between"]


def test_closing_on_a_storage_that_refuses_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file in the way")
    with Events(Folder(str(tmp_path)), "driver", warn=lambda _: None) as events:
        events.say("lost")
