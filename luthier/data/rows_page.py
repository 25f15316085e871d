"""Tokenized rows as one HTML page: token boundaries, loss weights, special tokens, white space, what was cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import TYPE_CHECKING, Any

from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.token_texts import decoder_of, token_texts
from luthier.foundation.pages import filled_page

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# of what was cut off in one place only so many tokens are shown: a book must not make the page unreadable
SHOWN_CUT_TOKENS = 300
# comparing longer stretches token by token takes too long; they are shown one behind the other
COMPARED_TOKENS = 4_000


@dataclass(frozen=True, slots=True)
class PageHead:
    """What stands above the rows.

    Args:
        about: model, split, template and files, a few words each.
        figures: (number, what it counts).
        notes: what a person should know about the data.
        left_out: rows that are not shown, with the reasons.
        names: what the sequences of an example are called, where they have names.
        trains_tokens: whether a row without targets is of no use.
    """

    title: str
    about: Sequence[str]
    figures: Sequence[tuple[str, str]]
    notes: Sequence[str]
    left_out: Sequence[str]
    names: Sequence[str]
    trains_tokens: bool


def rows_page(
    head: PageHead,
    examples: Sequence[TokenizedExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    untruncated: Sequence[TokenizedExample] = (),
    labels_of: Callable[[TokenizedExample], Sequence[str]] = lambda example: (),
) -> str:
    """The page's HTML. Texts of rows are data to its script and never part of its markup.

    Args:
        untruncated: the same examples as they would be without a cutoff, to show what was cut; none where not known.
        labels_of: numbers for the stage, in words.
    """
    decode = decoder_of(tokenizer)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    rows = []
    for place, example in enumerate(examples):
        whole = untruncated[place].sequences if untruncated and example.truncated else example.sequences
        pairs = zip(example.sequences, whole, strict=True)
        sequences = [_sequence(kept, full, special, decode) for kept, full in pairs]
        rows.append(
            {
                "file": example.origin.path,
                "row": example.origin.row,
                "tokens": example.tokens,
                "targets": example.targets,
                "cut": max(example.untruncated_length - example.tokens, 0),
                "labels": list(labels_of(example)),
                "sequences": sequences,
            }
        )
    payload = {
        "title": head.title,
        "about": list(head.about),
        "figures": list(head.figures),
        "notes": list(head.notes),
        "left_out": list(head.left_out),
        "names": list(head.names),
        "trains_tokens": head.trains_tokens,
        "rows": rows,
    }
    return filled_page("luthier.data.pages", "rows.html", head.title, payload)


def _sequence(
    kept: TokenSequence, full: TokenSequence, special: set[int], decode: Callable[[Sequence[int]], str]
) -> dict[str, Any]:
    """A sequence's tokens; what was cut off stands where it was, marked."""
    ids: list[int] = []
    weights: list[float] = []
    cut: list[tuple[int, int]] = []
    gaps: list[tuple[int, int]] = []
    for was_cut, start, end in _merged(kept.input_ids, full.input_ids):
        if not was_cut:
            ids += kept.input_ids[start:end]
            weights += kept.weights[start:end]
            continue
        shown = full.input_ids[start : min(end, start + SHOWN_CUT_TOKENS)]
        cut.append((len(ids), len(shown)))
        ids += shown
        weights += [0.0] * len(shown)
        if end - start > len(shown):
            gaps.append((len(ids) - 1, end - start - len(shown)))
    return {
        "texts": token_texts(ids, decode),
        "ids": ids,
        "weights": [(len(list(group)), weight) for weight, group in groupby(weights)],
        "special": [place for place, token in enumerate(ids) if token in special],
        "cut": cut,
        "gaps": gaps,
    }


def _merged(kept: Sequence[int], full: Sequence[int]) -> Iterator[tuple[bool, int, int]]:
    """Stretches (cut or not, start, end) that make up the full sequence: of `full` where cut, else of `kept`."""
    if kept == full:
        yield False, 0, len(kept)
        return
    same = 0
    while same < min(len(kept), len(full)) and kept[same] == full[same]:
        same += 1
    if same:
        yield False, 0, same
    rest, whole = kept[same:], full[same:]
    if len(rest) > COMPARED_TOKENS or len(whole) > 4 * COMPARED_TOKENS:
        changes: list[tuple[str, int, int, int, int]] = [("replace", 0, len(whole), 0, len(rest))]
    else:
        changes = list(SequenceMatcher(None, whole, rest, autojunk=False).get_opcodes())
    for kind, start, end, kept_start, kept_end in changes:
        if kind in ("delete", "replace"):
            yield True, same + start, same + end
        if kind != "delete":
            yield False, same + kept_start, same + kept_end
