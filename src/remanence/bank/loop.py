"""Lance's coroutines, run from ordinary code: one event loop per process, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")
_loops: dict[int, asyncio.AbstractEventLoop] = {}
_starting = threading.Lock()


def run(awaitable: Awaitable[Result]) -> Result:
    """Waits for `awaitable`, from any thread but the loop's own. A fork gets a loop of its own."""

    async def wait() -> Result:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(wait(), _loop()).result()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="remanence-bank", daemon=True).start()
        return loop
