"""Parts of a loop on as many threads as torch computes with."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def in_parts(work: Callable[[int, int], object], count: int) -> None:
    """Call ``work(first, last)`` for parts of ``range(count)``, each on a thread of its own.

    Args:
        work: Releases Python's lock, so that parts run at the same time.
        count: How much there is.
    """
    parts = min(torch.get_num_threads(), count)
    if parts <= 1:
        work(0, count)
        return
    ends = [count * i // parts for i in range(parts + 1)]
    # the process id: threads do not outlive a fork, but what holds them does
    list(_pool(os.getpid(), torch.get_num_threads()).map(work, ends[:-1], ends[1:]))


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"harness-x86-{process}")
