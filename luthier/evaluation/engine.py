"""What an engine is given and what it gives back: prompts in, answers out as they finish, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from luthier.config.generation_section import GenerationSettings
from luthier.config.schema import ModelConfig
from luthier.config.sections import PluginOptions
from luthier.data.records import Message, Tools
from luthier.foundation.progress import say

if TYPE_CHECKING:
    from luthier.model.placement import Placement


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt.

    Args:
        row: its number, from 0, which its answers bear and their random numbers are drawn from.
        messages: turns up to the answer.
        tools: functions that the answer may call.
        text: plain text to be continued, in place of messages.
    """

    row: int
    messages: tuple[Message, ...] = ()
    tools: Tools = ()
    text: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The prompt as plain values: {"prompt": text} or {"messages": [...]}, with tools where there are any."""
        if self.text is not None:
            return {"prompt": self.text}
        values: dict[str, Any] = {"messages": [message.as_dict() for message in self.messages]}
        return {**values, "tools": [dict(tool) for tool in self.tools]} if self.tools else values


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one prompt.

    Args:
        row, number: which prompt, and which of `num_return_sequences`.
        finish_reason: "stop", "length", "prompt_too_long" or "error".
        tokens: how many were generated.
        prompt_tokens: of the prompt, where the engine knows them.
        reason: why there is no answer, under the last two reasons.

    Half of a surrogate pair in `text` or `reason`, which no file can hold, becomes U+FFFD.
    """

    row: int
    number: int
    text: str
    finish_reason: str
    tokens: int
    prompt_tokens: int | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        for name in ("text", "reason"):
            object.__setattr__(self, name, encodable(getattr(self, name)))


def encodable(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair; JSON's escapes can say one, UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@dataclass(frozen=True, slots=True)
class Opening:
    """What an engine is opened with.

    Args:
        template: a chat template's name, or auto.
        placement: where the model's modules lie; None: on one device.
        say: told what a person should know.
    """

    model: ModelConfig
    template: str = "auto"
    placement: Placement | None = None
    trust_remote_code: bool = False
    say: Callable[[str], None] = field(default=say)


class EngineOptions(PluginOptions):
    """Base of an engine's `Options`.

    Args:
        on_server: the model is a server's: nothing of it can be read here, be it tokens or a loss.
    """

    on_server: ClassVar[bool] = False


class Engine(Protocol):
    """Answers prompts. Opening one costs little; weights are read at the first call of `answers`."""

    def identity(self) -> Mapping[str, Any]:
        """What its answers depend on, as JSON: model, template. Where it differs, a run is another one."""
        ...

    def check(self, settings: GenerationSettings) -> None:
        """Raise UserError for settings that it can't obey."""
        ...

    def answers(self, requests: Sequence[Request], settings: GenerationSettings) -> Iterator[Answer]:
        """Each prompt's answers, `num_return_sequences` of them, as they finish.

        Raises:
            UserError: the engine can't be reached or opened; prompts that it can't take.
        """
        ...
