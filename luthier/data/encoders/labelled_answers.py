"""Labelled texts as questions with label words for answers: for each class one sequence, the prompt with that class's words.

The sequences stand in the classes' order, each answer is a target, and the number of the right one is `label` in extras. What
is cut from the prompt is cut from it in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.data.encoders._labels import label_names, only_class, rejected
from luthier.data.encoders._lengths import LengthOptions, Rendered
from luthier.data.encoders._rendered import RenderedEncoder, last_answers
from luthier.data.examples import Encoded
from luthier.data.records import Labelled, Message, Pair, Record, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = Labelled
NEEDS_TEMPLATE = True
SEQUENCE_NAMES = "labels"  # the option that names an example's sequences
PLACES = re.compile(r"\{(text|text_pair|labels)\}")
QUESTION = "Which label fits: {labels}?\n\n{text}"
QUESTION_ON_TWO = "Which label fits: {labels}?\n\n{text}\n\n{text_pair}"


class Options(LengthOptions):
    """Lengths, the classes, and what is asked and answered."""

    CANNOT_SPLIT = "a labelled text has no turns to be split at"

    name: Literal["labelled_answers"] = "labelled_answers"
    labels: tuple[str, ...] = Field((), description="Names of the classes, in the order of their numbers.")
    prompt: str | None = Field(
        None, description="The question; {text}, {text_pair} and {labels} are put in. Unset: a plain one."
    )
    label_words: dict[str, str] = Field(
        default_factory=dict, description="What is answered for a class; unset: its name."
    )

    @field_validator("prompt")
    @classmethod
    def _asks_about_the_text(cls, value: str | None) -> str | None:
        if value is not None and "{text}" not in value:
            raise ValueError("stage.prompt has no {text}, so it would ask the same of every row")
        return value

    @model_validator(mode="after")
    def _words_tell_classes_apart(self) -> Options:
        problems = [
            f"stage.label_words names {name!r}, which is none of the classes: {', '.join(self.labels)}"
            for name in self.label_words
            if self.labels and name not in self.labels
        ]
        words = self.words()
        problems += [
            f"stage.label_words answers {word!r} for two classes" for word in set(words) if words.count(word) > 1
        ]
        problems += ["stage.label_words has an empty answer"] if not all(word.strip() for word in words) else []
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def words(self) -> list[str]:
        """The answers, in the classes' order."""
        return [self.label_words.get(name, name) for name in self.labels]


def from_records(records: Sequence[Record]) -> dict[str, Any]:
    """The options that the training data decide."""
    return {"labels": label_names(records)}


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes labelled texts; see `RenderedEncoder` for what it raises."""
    assert renderer is not None
    words = options.words()

    def render(record: Pair) -> list[Rendered]:
        answers = (Message("assistant", word) for word in words)
        return [last_answers(renderer.pieces((*record.prompt, answer))) for answer in answers]

    def answered(record: Labelled) -> Pair:
        """The question, with the right answer as the chosen one."""
        word = words[only_class(record, options.labels)]
        question = Message("user", _question(record, options.prompt, words))
        return Pair((question,), (Message("assistant", word),), (), record.origin)

    encode_pairs = RenderedEncoder(
        Pair, renderer, options, render, extras=lambda pair: {"label": float(words.index(pair.chosen[0].content))}
    )

    def encode(records: Sequence[Record]) -> Encoded:
        pairs, unusable = [], []
        for record in records:
            assert isinstance(record, Labelled)
            try:
                pairs.append(answered(record))
            except RowError as error:
                unusable.append(rejected(record, error))
        encoded = encode_pairs(pairs)
        encoded.rejected[:0] = unusable
        return encoded

    return encode


def _question(record: Labelled, prompt: str | None, words: Sequence[str]) -> str:
    """The prompt about a record."""
    if prompt is None:
        prompt = QUESTION if record.text_pair is None else QUESTION_ON_TWO
    if ("{text_pair}" in prompt) != (record.text_pair is not None):
        has = "has no second text" if record.text_pair is None else "has a second text"
        raise RowError(f"{has}, and stage.prompt {'has' if record.text_pair is None else 'lacks'} {{text_pair}}.")
    parts = {"text": record.text, "text_pair": record.text_pair or "", "labels": ", ".join(words)}
    # in one pass: a text that holds {labels} itself stays as it is
    return PLACES.sub(lambda place: parts[place[1]], prompt)
