"""A part of a benchmark in a process of its own, so that its memory and its CPU are its own."""

import asyncio
import multiprocessing
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

STOP_LIMIT_SECONDS = 30.0

Pipe = Connection
Target = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that answers one question after the other."""

    pid: int
    pipe: "Connection[Any, Any]"

    def ask(self, question: Any) -> Any:
        """What it answers; raises EOFError when it has ended."""
        self.pipe.send(question)
        return self.pipe.recv()


@contextmanager
def own_process(target: Target, *arguments: object) -> Iterator[Worker]:
    """`target(*arguments, pipe)` in a new process, which ends with the block; it is expected to call `answering`."""
    spawning = multiprocessing.get_context("spawn")  # nothing of this process's memory
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=target, args=(*arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield Worker(process.pid, ours)
        ours.send(None)
        process.join(STOP_LIMIT_SECONDS)
    finally:
        process.kill()


async def answering(pipe: "Connection[Any, Any]", answer: Callable[[Any], Awaitable[Any]]) -> None:
    """Answer the questions that come, until there are no more."""
    while (question := await asyncio.to_thread(pipe.recv)) is not None:
        pipe.send(await answer(question))
