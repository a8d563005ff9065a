"""Ctrl-C and SIGTERM as a wish that the loop fulfils after the step it is in."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def asking_to_stop(*, insist: bool) -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question that the loop asks.

    Outside of the main thread, where Python allows no handlers, nobody asks.

    Parameters
    ----------
    insist : bool
        Whether a second signal does what it did before: for a step that does not end. Not under torchrun, which hands
        on a Ctrl-C that the terminal has sent to every process already.

    Yields
    ------
    callable
        Whether somebody asked.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before: dict[signal.Signals, Any] = {}

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        if insist:
            restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        restore()
