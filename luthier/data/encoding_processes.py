"""Other processes that encode records: a plain Python each, told what to do through a pipe.

Not forked: a tokenizer's threads, CUDA and whatever else runs in this process stay here. Not multiprocessing's spawn:
that would run the user's script anew in each of them. They end when the pipe does, so none outlives a killed parent.
"""

from __future__ import annotations

import copyreg
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from operator import attrgetter
from types import TracebackType
from typing import Any, Self

from luthier.data.encoding import ChosenEncoder, EncodedBlock, EncodingTask
from luthier.data.records import Conversation, Labelled, LabelledConversation, Message, Origin, Pair, Record, ToolCall
from luthier.foundation.progress import say

# -P: nothing in the working folder goes before Python's own modules
_START = (
    "-P",
    "-c",
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from luthier.data.encoding_processes import answer; answer()",
)
BLOCKS_AHEAD = 2  # for each process: enough to keep it busy, little enough for memory

EncodeBlocks = Callable[[Iterable[Sequence[Record]]], Iterator[EncodedBlock | None]]


def _pickle_quickly(kind: type) -> None:
    """Send objects of a frozen dataclass as their class and values: a third of the time of how dataclasses do it."""
    values_of = attrgetter(*(item.name for item in fields(kind)))
    copyreg.pickle(kind, lambda record: (kind, values_of(record)))


for _kind in (Conversation, Labelled, LabelledConversation, Message, Origin, Pair, ToolCall):
    _pickle_quickly(_kind)


class EncodingProcesses:
    """`count` processes that encode blocks of records. A context manager."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lost = False
        self._processes: list[subprocess.Popen[bytes]] = []
        # free processes, each with what it must still be told before it can be asked
        self._idle: queue.SimpleQueue[tuple[subprocess.Popen[bytes], bytes]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        # a process is one core's work, so its tokenizer starts no threads
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        for _ in range(self._count):
            process = subprocess.Popen(
                [sys.executable, *_START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            self._processes.append(process)
            assert process.stdin is not None
            pickle.dump(sys.path, process.stdin)
            process.stdin.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def prepare(self, task: EncodingTask) -> EncodeBlocks | None:
        """A function that encodes blocks of a task, in order; it gives None for a block that was not encoded.

        None where the task can't be sent.
        """
        try:
            told = pickle.dumps(task)
        except Exception as error:  # whatever a tokenizer of somebody else's class raises
            say(f"data: one process tokenizes, since this tokenizer can't be sent to another ({error})")
            return None
        for process in self._processes:
            self._idle.put((process, told))
        return self._encode

    def _encode(self, blocks: Iterable[Sequence[Record]]) -> Iterator[EncodedBlock | None]:
        pending: deque[Future[EncodedBlock | None]] = deque()
        with ThreadPoolExecutor(self._count) as threads:
            for block in blocks:
                pending.append(threads.submit(self._ask, block))
                if len(pending) > BLOCKS_AHEAD * self._count:
                    yield self._answer(pending)
            while pending:
                yield self._answer(pending)

    def _ask(self, block: Sequence[Record]) -> EncodedBlock | None:
        """One block through whichever process is free.

        Raises:
            EOFError, OSError: the process is gone.
        """
        process, task = self._idle.get()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(task)
            pickle.dump(block, process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            found: EncodedBlock | None = pickle.load(process.stdout)  # noqa: S301 - from our own process
            return found
        finally:
            self._idle.put((process, b""))

    def _answer(self, pending: deque[Future[EncodedBlock | None]]) -> EncodedBlock | None:
        try:
            return pending.popleft().result()
        except (EOFError, OSError, pickle.UnpicklingError):
            if not self._lost:
                say("data: a process that tokenizes was ended from outside (for want of memory?); this one takes over")
            self._lost = True
            return None


def answer() -> None:
    """The other process: read a task, then blocks until the pipe ends; answer each with its `EncodedBlock`.

    None is the answer for a block that gives an error: where it came from it is encoded again, and the error told.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plug-in prints must not come among the answers
    # imports that take a second, while the rows are read
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    from luthier.data.rendering import Renderer  # noqa: F401

    task: EncodingTask = pickle.load(questions)  # noqa: S301 - from the process that started us
    chosen = task.choose()
    # blocks of rows are trees, let go of as they are done; looking for circles in them took a twentieth of the time
    gc.freeze()
    gc.set_threshold(100_000)
    try:
        while True:
            records: Any = pickle.load(questions)  # noqa: S301
            pickle.dump(_encoded(task, chosen, records), answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the pipe has ended; flushing into it would only raise again


def _encoded(task: EncodingTask, chosen: ChosenEncoder, records: Sequence[Record]) -> EncodedBlock | None:
    try:
        return task.encode(chosen, records)
    except Exception:
        return None
