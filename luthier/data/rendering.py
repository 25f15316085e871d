"""The one renderer, for training, chat, predict and serve: a conversation to text, token ids and loss weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import jinja2

from luthier.data.piece_tokens import Encoding, Piece, PieceTokenizer, TokenCount, control_pattern
from luthier.data.records import Message, RowError, Tools
from luthier.data.template_files import Template, load_template, template_names
from luthier.data.templating import compile_template, has_generation_tags, render_spans
from luthier.foundation.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
_WITH_TOOLS = "set data.template to one that has tools"
_THOUGHT_ENDS = "</think>"
_PROBE = (Message("user", "How are you?"), Message("assistant", "I am well."))


class Renderer:
    """Renders conversations with one tokenizer and one chat template.

    Args:
        tokenizer: a transformers tokenizer, repaired where it lacked the template's tokens.
        template_name: a name in data/templates, or auto for the tokenizer's own template.
        day: that a template which writes the date is told; None: today, whenever that is.

    Attributes:
        name: the template's name for messages and reports.
        chat_template: its jinja source, to be saved into the tokenizer.
        stop_token_ids: ids that end an answer, EOS first.

    Raises:
        DataError: no such template, the tokenizer has none of its own, or it can't be trained on (it is not
            prefix-consistent, or never ends an answer).
        ModelError: the tokenizer lacks a token that the template needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_name: str = AUTO, day: date | None = None) -> None:
        self._tokenizer = tokenizer
        self.day = day
        named = None if template_name == AUTO else load_template(template_name)
        self.name = template_name if named else "the tokenizer's own"
        self.chat_template = named.text if named else own_template(tokenizer)
        try:
            self._compiled = compile_template(self.chat_template)
        except jinja2.TemplateError as error:
            raise DataError(
                f"the chat template ({self.name}) is broken: {error}.", "Mend it, or set data.template."
            ) from error
        self._tagged = has_generation_tags(self.chat_template)
        self._special_tokens: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._pieces = PieceTokenizer(tokenizer)
        self._control = control_pattern(tokenizer)
        stops = _named_stops(named, tokenizer) if named else self._own_stops()
        self.stop_token_ids: tuple[int, ...] = tuple(tokenizer.convert_tokens_to_ids(token) for token in stops)
        self._check_ending(stops)

    @property
    def splits(self) -> bool:
        """Whether pieces are tokenized one by one (see piece_tokens)."""
        return self._pieces.splits

    def pieces(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools = ()
    ) -> list[Piece]:
        """The rendered conversation in pieces, end to end: context, and every assistant turn with its weight.

        Args:
            tools: functions the assistant may call; given to the template as transformers does.

        Raises:
            RowError: the template refuses the conversation, does not tell its trained spans, or has no place for
                tools or their calls.
        """
        if self._tagged:
            found = self._pieces_by_tag(messages, add_generation_prompt, tools)
        else:
            found = self._pieces_by_prefix(messages, add_generation_prompt, tools)
        if tools and self._text(messages, add_generation_prompt) == "".join(piece.text for piece in found):
            raise RowError(
                f"has tools, which the chat template ({self.name}) has no place for; {_WITH_TOOLS}, or take the tools out."
            )
        self._check_calls(messages, found)
        return found

    def _pieces_by_tag(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Tools) -> list[Piece]:
        """Assistant turns are what stands in generation blocks."""
        answers = iter([message.weight for message in messages if message.role == "assistant"])
        found = []
        for text, inside in self._render(messages, add_generation_prompt, tools):
            weight = next(answers, None) if inside else None
            if inside and weight is None:
                raise RowError(f"the chat template ({self.name}) marks more spans than there are assistant turns.")
            found.append(Piece(text, weight))
        if next(answers, None) is not None:
            raise RowError(f"the chat template ({self.name}) marks fewer spans than there are assistant turns.")
        return found

    def _check_calls(self, messages: Sequence[Message], pieces: Sequence[Piece]) -> None:
        """Raise `RowError` where a turn's calls, or its text beside them, are not in what the template made of it."""
        if not any(message.tool_calls for message in messages):
            return
        text = "".join(piece.text for piece in pieces)
        spans = [piece.text for piece in pieces if piece.weight is not None]
        answers = [message for message in messages if message.role == "assistant"]
        if len(spans) < len(answers):  # a prompt that can't be told apart is one piece
            spans = [text] * len(answers)
        for message, span in zip(answers, spans, strict=True):
            lost = next((call.name for call in message.tool_calls if call.name not in span), None)
            if lost is not None:
                raise RowError(
                    f"calls the tool {lost!r}, which the chat template ({self.name}) leaves out of the answer; {_WITH_TOOLS}."
                )
            said = message.content.rpartition(_THOUGHT_ENDS)[2].strip()  # what was thought some families leave out
            if message.tool_calls and said not in span:
                raise RowError(
                    f"has text beside its calls, which the chat template ({self.name}) leaves out of the answer; take it out, or "
                    "set data.template to one that writes both."
                )

    def prompt_text(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The conversation as text, up to where the assistant's next turn begins."""
        return "".join(piece.text for piece in self.pieces(messages, True, tools))

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """The same as token ids: exactly those before the answer in `encode` of the answered conversation."""
        return self._pieces.encode([self.pieces(messages, True, tools)])[0][0]

    def encode(self, messages: Sequence[Message], tools: Tools = ()) -> Encoding:
        """(ids, weights) for training; nothing stands after the last token with a weight."""
        return self.encode_pieces([self.pieces(messages, tools=tools)])[0]

    def encode_pieces(self, conversations: Sequence[Sequence[Piece]]) -> list[Encoding]:
        """`encode` of many conversations that `pieces` has rendered: the fast way."""
        return [
            _cut_after_last_target(*encoding)
            for encoding in self._pieces.encode([_until_last(p) for p in conversations])
        ]

    def count_tokens(self, pieces: Sequence[Piece], positions: Sequence[int]) -> list[TokenCount]:
        """How many of the pieces' tokens stand before each of some characters of their text, for cutting."""
        return self._pieces.count_tokens(pieces, positions)

    def holds_control_tokens(self, messages: Sequence[Message]) -> bool:
        """Whether a content spells out a special token, which the tokenizer will take for that token."""
        return any(
            self._control.search(message.content)
            or (message.tool_calls and any(map(self._control.search, _texts(message.as_dict()["tool_calls"]))))
            for message in messages
        )

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Tools = ()
    ) -> list[tuple[str, bool]]:
        try:
            return render_spans(
                self._compiled,
                [message.as_dict() for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                special_tokens=self._special_tokens,
                day=self.day,
            )
        except jinja2.TemplateError as error:
            raise RowError(f"the chat template ({self.name}) refuses this conversation: {error}.") from error

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Tools = ()) -> str:
        return "".join(text for text, _ in self._render(messages, add_generation_prompt, tools))

    def _pieces_by_prefix(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Tools = ()
    ) -> list[Piece]:
        """Assistant turn i is what render(messages[:i + 1]) has more than render(messages[:i]) with generation prompt."""
        whole = self._text(messages, add_generation_prompt, tools)
        found: list[Piece] = []
        done = 0
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._text(messages[:index], True, tools)
            last = index == len(messages) - 1 and not add_generation_prompt
            upto = whole if last else self._text(messages[: index + 1], False, tools)
            if len(before) < done or not upto.startswith(before) or not whole.startswith(upto):
                if add_generation_prompt:
                    return [Piece(whole)]  # a prompt trains nothing, so nothing need be told apart
                raise RowError(
                    f"the chat template ({self.name}) renders turn {index + 1} differently in a longer conversation, so the "
                    f"answer's tokens can't be told from it; set data.template to one of {', '.join(template_names())}."
                )
            end = len(before) + self._turn_end(upto[len(before) :], message)
            found.append(Piece(whole[done : len(before)]))
            found.append(Piece(whole[len(before) : end], message.weight))
            done = end
        found.append(Piece(whole[done:]))
        return [piece for piece in found if piece.text]

    def _turn_end(self, turn: str, message: Message) -> int:
        """Where the trained span of a turn's text ends: after the first special token behind the content.

        Calls stand between special tokens in some families, so a turn with calls ends after the last one.
        """
        content = message.content.strip()
        start = max(turn.find(content), 0) + len(content)
        stops = [stop.end() for stop in self._control.finditer(turn, start)]
        if not stops:
            return len(turn)
        return stops[-1] if message.tool_calls else stops[0]

    def _own_stops(self) -> list[str]:
        """The stop tokens of the tokenizer's own template: EOS, and what the template writes after an answer."""
        stops = [self._tokenizer.eos_token] if self._tokenizer.eos_token is not None else []
        for piece in self._probe():
            written = (
                [match.group() for match in self._control.finditer(piece.text)] if piece.weight is not None else []
            )
            stops.extend(token for token in written[-1:] if token not in stops)
        return stops

    def _check_ending(self, stops: Sequence[str]) -> None:
        trained = [piece.text for piece in self._probe() if piece.weight is not None]
        if not trained or not trained[-1].endswith(tuple(stops)):
            raise DataError(
                f"the chat template ({self.name}) writes no stop token after an answer, so a model trained on it would never "
                f"stop; the answer ends in {trained[-1][-20:] if trained else ''!r}.",
                f"Set data.template to one of {', '.join(template_names())}.",
            )

    def _probe(self) -> list[Piece]:
        try:
            return self.pieces(_PROBE)
        except RowError as error:
            raise DataError(str(error), f"Set data.template to one of {', '.join(template_names())}.") from error


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value of JSON's types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's own chat template.

    Raises:
        DataError: it has none; the named ones are listed.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise DataError(
            "data.template is auto, but the model's tokenizer has no chat template of its own.",
            f"Set data.template to one of {', '.join(template_names())}; chatml suits a base model.",
        )
    return str(template)


def _named_stops(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A named template's stop tokens, after a check that the tokenizer has all its special tokens."""
    known = tokenizer.get_vocab()
    missing = [
        token for token in dict.fromkeys((*template.special_tokens, *template.stop_tokens)) if token not in known
    ]
    if missing:
        raise ModelError(
            f"the chat template {template.name} needs the tokens {', '.join(missing)}, which the tokenizer lacks.",
            "Add them to the tokenizer, or use data.template: auto.",
        )
    if tokenizer.eos_token is None and not template.stop_tokens:
        raise ModelError(
            f"the chat template {template.name} ends an answer with EOS, which the tokenizer lacks.",
            "Give the tokenizer one.",
        )
    eos = [tokenizer.eos_token] if tokenizer.eos_token is not None else []
    return list(dict.fromkeys([*eos, *template.stop_tokens]))


def _until_last(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """The pieces up to the last trained one: what follows would cost computation and teach nothing."""
    last = max((index for index, piece in enumerate(pieces) if piece.trained), default=len(pieces) - 1)
    return pieces[: last + 1]


def _cut_after_last_target(ids: list[int], weights: list[float]) -> Encoding:
    """Tokens up to the last target: joint tokenization may leave a tail of context."""
    end = len(weights)
    while end and weights[end - 1] == 0:
        end -= 1
    return (ids[:end], weights[:end]) if 0 < end < len(ids) else (ids, weights)
