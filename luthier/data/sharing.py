"""Which tokens of a batch are the same in the same context: a trie over the token ids of its sequences.

Nobody names prefixes: a system prompt, a few-shot head, a schema, the prompt of two answers all show in the ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LEAST_SAVED = 8  # tokens; a further segment costs about as much as computing a few tokens more, in every layer


@dataclass(slots=True)
class Node:
    """Tokens that follow their parent's in `count` sequences.

    Args:
        start, end: range of the tokens in any sequence that goes through here.
        example: number of such a sequence.
        ends: numbers of the sequences that end here.
        children: by their first token.
    """

    start: int
    end: int
    example: int
    count: int = 1
    ends: list[int] = field(default_factory=list)
    children: dict[int, Node] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """A segment to be: tokens [start, end) of a sequence.

    Args:
        parent: index of the part whose tokens come before, or None.
        ends: numbers of the sequences whose last token is the part's last.
    """

    sequence: int
    start: int
    end: int
    parent: int | None
    ends: tuple[int, ...]


def unshared(sequences: Sequence[Sequence[int]]) -> list[Part]:
    """Every sequence a root of its own."""
    return [Part(number, 0, len(ids), None, (number,)) for number, ids in enumerate(sequences)]


def shared(sequences: Sequence[Sequence[int]], least_saved: int = LEAST_SAVED) -> list[Part]:
    """The forest of a batch: each token once for each context it stands in, as far as that saves enough.

    Parents come directly before their descendants (depth first), which the attention relies on to read a part's
    descendants as one range.

    Args:
        sequences: token ids, none empty.
        least_saved: a part is shared where that saves at least so many tokens; otherwise each of its children begins
            with its tokens.
    """
    roots: dict[int, Node] = {}
    for number, ids in enumerate(sequences):
        _insert(roots, ids, number, sequences)
    parts: list[Part] = []
    for root in roots.values():
        parts.extend(_emit(root, root.start, None, least_saved, len(parts)))
    return parts


def _insert(level: dict[int, Node], ids: Sequence[int], number: int, sequences: Sequence[Sequence[int]]) -> None:
    """Put a sequence into the trie, splitting the node where it leaves it."""
    position = 0
    while True:
        node = level.get(ids[position])
        if node is None:
            level[ids[position]] = Node(position, len(ids), number, ends=[number])
            return
        common = _common(ids, sequences[node.example], position, min(len(ids), node.end))
        if common < node.end:
            rest = Node(common, node.end, node.example, node.count, node.ends, node.children)
            node.end, node.ends, node.children = common, [], {sequences[node.example][common]: rest}
        node.count += 1
        position = node.end
        if position == len(ids):
            node.ends.append(number)
            return
        level = node.children


def _common(own: Sequence[int], other: Sequence[int], start: int, end: int) -> int:
    """Where two sequences part, in [start, end]; they agree before `start`."""
    if own[start:end] == other[start:end]:
        return end
    return next(index for index in range(start, end) if own[index] != other[index])


def _emit(node: Node, start: int, parent: int | None, least_saved: int, index: int) -> Iterator[Part]:
    """The parts of a subtree, whose first one gets the number `index`; its tokens begin at `start`."""
    is_leaf = not node.children
    if not is_leaf and (node.count - 1) * (node.end - start) < least_saved:
        # not worth a segment of its own: those that end here, and each child, begin with its tokens
        if node.ends:
            yield Part(node.example, start, node.end, parent, tuple(node.ends))
            index += 1
        for child in node.children.values():
            for part in _emit(child, start, parent, least_saved, index):
                yield part
                index += 1
        return
    yield Part(node.example, start, node.end, parent, tuple(node.ends))
    own, index = index, index + 1
    for child in node.children.values():
        for part in _emit(child, node.end, own, least_saved, index):
            yield part
            index += 1
