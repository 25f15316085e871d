"""A tokenized example as a person reads it: its text, the trained tokens told apart from the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from luthier.data.examples import TokenizedExample
from luthier.data.piece_tokens import control_pattern

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

TRAINED_STYLE = "green"
SPECIAL_STYLE = "bold magenta"
CONTEXT_STYLE = "dim"
OPEN, CLOSE = "⟦", "⟧"
# control characters as their pictures: a row must not be able to steer the terminal
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one weight, as text."""

    text: str
    weight: float
    tokens: int


def spans_of(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> list[list[Span]]:
    """For each sequence of an example its text in spans, end to end."""
    return [_spans(sequence.input_ids, sequence.weights, tokenizer) for sequence in example.sequences]


def _spans(ids: Sequence[int], weights: Sequence[float], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    found = []
    end, before = 0, ""
    for weight, group in groupby(weights):
        count = len(list(group))
        end += count
        # decoded from the start each time: a decoder may treat the first token of a text in its own way
        text = tokenizer.decode(list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(Span(text[len(before) :], weight, count))
        before = text
    return found


def coloured(spans: Sequence[Span], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Spans for the terminal: trained ones green and between ⟦ ⟧ (with their weight where it is not 1), special tokens
    magenta."""
    from rich.text import Text

    text = Text()
    for span in spans:
        shown = span.text.translate(_VISIBLE)
        if span.weight > 0:
            weight = "" if span.weight == 1 else f"{span.weight:g}: "
            text.append(f"{OPEN}{weight}{shown}{CLOSE}", TRAINED_STYLE)
        else:
            text.append(shown, CONTEXT_STYLE)
    text.highlight_regex(control_pattern(tokenizer), SPECIAL_STYLE)
    return text


def example_as_dict(example: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """An example's counts and text as plain values."""
    return {
        "file": example.origin.path,
        "row": example.origin.row,
        "tokens": example.tokens,
        "targets": example.targets,
        "untruncated_tokens": example.untruncated_length,
        "sequences": [
            [{"text": span.text, "weight": span.weight, "tokens": span.tokens} for span in spans]
            for spans in spans_of(example, tokenizer)
        ],
    }
