"""Make the next items in a background thread while the present one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

AHEAD = 2  # items ready and waiting, beside the one in hand and the one being made


@contextmanager
def ahead(make: Callable[[T], U], items: Iterable[T], depth: int = AHEAD) -> Iterator[Iterator[U]]:
    """``make(item)`` for each item, in order, at most ``depth`` of them waiting.

    What is computed is what a plain loop would compute: one thread makes the items one after another. An error of
    ``make`` is raised where its item would have been read. Leaving the context, for whatever reason, stops the thread
    and waits for it: the item being made is finished, no further one is begun. With ``depth`` 0 there is no thread.
    """
    if not depth:
        yield map(make, items)
        return
    ready: queue.Queue[tuple[bool, U | BaseException | None]] = queue.Queue(maxsize=depth)
    over = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if over.is_set():
                    return
                ready.put((True, make(item)))
            ready.put((False, None))
        except BaseException as error:  # noqa: BLE001 -- it belongs to the reader, whatever it is
            ready.put((False, error))

    def read() -> Iterator[U]:
        while True:
            more, value = ready.get()
            if more:
                yield value  # type: ignore[misc]
            elif value is not None:
                raise value  # type: ignore[misc]
            else:
                return

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        over.set()
        while thread.is_alive():  # it may be waiting for room, and may do so once more
            while not ready.empty():
                ready.get_nowait()
            thread.join(timeout=0.01)
