"""An engine whose answers a test writes; it remembers what it was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luthier.config.generation_section import GenerationSettings
from luthier.config.sections import PluginOptions
from luthier.evaluation.engine import Answer, Opening, Request

ASKED: list[tuple[Request, GenerationSettings]] = []


class Options(PluginOptions):
    """What it says.

    Args:
        answers: by row, the answers to its prompts: the first prompt's samples, then the next prompt's; None for one that
            it can't give.
        stop_after: raise KeyboardInterrupt after so many prompts.
    """

    answers: list[list[str | None]]
    stop_after: int | None = None


def build(options: Options, opening: Opening) -> ScriptedEngine:
    """The engine."""
    return ScriptedEngine(options)


class ScriptedEngine:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._given: dict[int, int] = {}

    def identity(self) -> Mapping[str, Any]:
        return {"engine": "scripted"}

    def check(self, settings: GenerationSettings) -> None:
        """It takes any."""

    def answers(self, requests: Sequence[Request], settings: GenerationSettings) -> Iterator[Answer]:
        for request in requests:
            if len(ASKED) == self._options.stop_after:
                raise KeyboardInterrupt
            ASKED.append((request, settings))
            for number in range(settings.num_return_sequences):
                place = self._given.get(request.row, 0)
                self._given[request.row] = place + 1
                said = self._options.answers[request.row][place]
                if said is None:
                    yield Answer(request.row, number, "", "error", 0, reason="the server is gone")
                else:
                    yield Answer(request.row, number, said, "stop", 5)
