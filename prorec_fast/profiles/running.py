"""From synchronous code into a driver and out again, with what is under way kept on Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import Protocol, TypeVar

from .errors import ProfileError

T = TypeVar("T")


class Session(Protocol):
    """Starts nothing more once `stop` is set, and lets what is under way end."""

    stop: BaseException | None


class Interrupted(ProfileError):
    """The user wants the run to end."""


def run_to_end(work: Callable[[], Awaitable[T]], session: Session) -> T:
    """The result of `work()`, also where an event loop runs already (a notebook's).

    The first SIGINT or SIGTERM sets `session.stop`, so that what is under way is still kept; the second cancels.

    Raises:
        KeyboardInterrupt: the run was interrupted; running it again goes on where it was.
    """

    async def main() -> T:
        with _signals(session, asyncio.current_task()):
            return await work()

    try:
        return _in_a_loop(main)
    except (Interrupted, asyncio.CancelledError):
        raise KeyboardInterrupt("what is paid for is kept; the same command goes on") from None


def _in_a_loop(main: Callable[[], Awaitable[T]]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    found: list[T] = []
    problem: list[BaseException] = []

    def elsewhere() -> None:
        try:
            found.append(asyncio.run(main()))
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return found[0]


@contextmanager
def _signals(session: Session, task: asyncio.Task | None):
    def interrupted() -> None:
        if session.stop is None:
            session.stop = Interrupted("interrupted")
        elif task is not None:
            task.cancel()

    loop, ours = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for one in ours:
        loop.add_signal_handler(one, interrupted)
    try:
        yield
    finally:
        for one in ours:
            loop.remove_signal_handler(one)
