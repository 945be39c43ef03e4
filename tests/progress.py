"""Whether one thread goes on while another is inside a call."""

import threading
import time
from collections.abc import Callable

from dropfast._backend import on_threads


def calls_let_others_go_on(call: Callable[[], object]) -> list[bool]:
    """Call until another thread was seen to go on meanwhile, at most 50 times; return for each call whether it was."""
    ticks: list[float] = []
    seen: list[bool] = []

    def work() -> None:
        with on_threads(1):  # longer calls, and a core left for the other thread
            while len(seen) < 50 and not any(seen):  # a busy machine may not let the other thread run in each call
                begin = time.perf_counter()
                call()
                margin = 0.2 * (time.perf_counter() - begin)
                seen.append(any(begin + margin < tick < time.perf_counter() - margin for tick in ticks[-1000:]))

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0002)
    worker.join()
    return seen
