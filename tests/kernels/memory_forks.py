"""Fork while four threads free outputs without the interpreter's lock; print the forks, and the children that hung.

Kept memory is limited, so that each release unmaps pages, for microseconds, while it holds the lock of the blocks.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import torch

import batchnorm

FORKS, SECONDS, PATIENCE = 1000, 20.0, 5


def main() -> None:
    """Start the threads, fork, and stop at the first child that hangs."""
    torch.set_num_threads(1)
    batchnorm.limit_kept_memory(1)
    x = torch.randn(260, 64)  # 65 KiB: the smallest blocks
    layer = batchnorm.BatchNorm1d(64).eval()
    stop = threading.Event()

    def work() -> None:
        factor = torch.ones((), requires_grad=True)
        while not stop.is_set():
            with torch.no_grad():
                outputs = [layer(x) for _ in range(100)]
            corners = [y[:1, :1] * factor for y in outputs]
            total = torch.stack(corners).sum()
            del outputs, corners  # the graph has the last references
            total.backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    forks = hung = 0
    end = time.monotonic() + SECONDS
    while forks < FORKS and not hung and time.monotonic() < end:
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE)
            with torch.no_grad():
                layer(x)
            os._exit(0)
        hung += os.waitpid(child, 0)[1] != 0
        forks += 1
    stop.set()
    for thread in threads:
        thread.join()
    print(forks, hung)  # noqa: T201


if __name__ == "__main__":
    main()
