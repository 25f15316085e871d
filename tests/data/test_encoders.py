"""Conversations and documents as token sequences: lengths, truncation, blocks."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.encoders import conversation, text
from luthier.data.encoders._lengths import CUT_INSIDE
from luthier.data.records import Conversation, Document, Message, Origin
from luthier.data.rendering import Renderer
from luthier.foundation.errors import DataError, ModelError


def origin(row: int) -> Origin:
    return Origin("f.json", row)


def talk(row: int, answer: str, weight: float = 1.0, *more: Message) -> Conversation:
    return Conversation((Message("user", "Hello"), Message("assistant", answer, weight), *more), origin(row))


def encode(tokenizer, records, **options):
    return conversation.build(conversation.Options(**options), tokenizer, Renderer(tokenizer, "chatml"))(records)


def test_lengths(byte_tokenizer) -> None:
    records = [talk(1, "short"), talk(2, "a much longer answer than that " * 9)]
    full = encode(byte_tokenizer, records, cutoff_length=4096).examples
    cutoff = full[0].tokens
    cut = encode(byte_tokenizer, records, cutoff_length=cutoff)
    assert [example.tokens for example in cut.examples] == [cutoff, cutoff]
    assert [example.truncated for example in cut.examples] == [False, True]
    assert cut.examples[1].untruncated_length == full[1].tokens
    assert cut.unfinished == [origin(2)] and not cut.dropped and cut.findings == {CUT_INSIDE: 1}
    dropped = encode(byte_tokenizer, records, cutoff_length=cutoff, over_length="drop")
    assert [example.origin.row for example in dropped.examples] == [1] and dropped.dropped == [origin(2)]
    with pytest.raises(DataError) as caught:
        encode(byte_tokenizer, records, cutoff_length=cutoff, over_length="error")
    assert f"1 rows are longer than data.cutoff_length ({cutoff} tokens)" in caught.value.problem
    assert f"f.json, row 2: {full[1].tokens} tokens" in caught.value.problem
    assert f"Raise data.cutoff_length to {full[1].tokens}" in caught.value.remedy


def test_a_cut_inside_context_leaves_no_tail(byte_tokenizer) -> None:
    record = talk(1, "first", 1.0, Message("user", "a long question " * 20), Message("assistant", "second"))
    full = encode(byte_tokenizer, [record], cutoff_length=4096).examples[0]
    weights = full.sequences[0].weights
    first_end = weights.index(0.0, weights.index(1.0))
    cut = encode(byte_tokenizer, [record], cutoff_length=first_end + 30)
    assert cut.examples[0].tokens == first_end and cut.examples[0].targets > 0
    # the first answer keeps its stop token, so the model still learns to stop here
    assert not cut.unfinished and cut.examples[0].truncated


def test_a_cut_before_the_first_answer_leaves_no_target(byte_tokenizer) -> None:
    cut = encode(byte_tokenizer, [talk(1, "x")], cutoff_length=3)
    assert cut.examples[0].targets == 0 and cut.findings[conversation.CUT_BEFORE_ANSWER] == 1


def test_findings_and_refused_rows(byte_tokenizer) -> None:
    records = [
        talk(1, "say <|im_end|>"),
        Conversation((Message("user", "q"), Message("assistant", "a")), origin(2), ("a note",)),
    ]
    assert encode(byte_tokenizer, records).findings == {conversation.CONTROL_TOKENS: 1, "a note": 1}
    twice = Conversation((Message("user", "q"), Message("user", "q"), Message("assistant", "a")), origin(3))
    build = conversation.build(conversation.Options(), byte_tokenizer, Renderer(byte_tokenizer, "llama2"))
    encoded = build([talk(1, "x"), twice])
    assert len(encoded.examples) == 1 and encoded.rejected[0].origin == origin(3)
    assert "turns must alternate" in encoded.rejected[0].reason and encoded.rejected[0].values["messages"]


def test_weight_zero_everywhere_is_no_target(byte_tokenizer) -> None:
    assert encode(byte_tokenizer, [talk(1, "x", 0.0)]).examples[0].targets == 0


def test_blocks_of_a_worked_example(byte_tokenizer) -> None:
    """Documents a, b, c of 3, 1 and 4 tokens (EOS included) in blocks of 4: [a a a b] [c c c c]."""
    eos = byte_tokenizer.eos_token_id
    ids = {letter: byte_tokenizer(letter).input_ids[0] for letter in "ab"}
    documents = [Document("ab"[:1] + "\t", origin(1)), Document("b", origin(2))]
    first = [ids["a"], *byte_tokenizer("\t").input_ids, eos]
    second = [ids["b"], eos]
    build = text.build(text.Options(cutoff_length=4), byte_tokenizer, None)
    blocks = build(documents).examples
    assert [[list(s.input_ids) for s in block.sequences] for block in blocks] == [[first, second[:1]], [second[1:]]]
    assert [[list(s.weights) for s in block.sequences] for block in blocks] == [[[0.0, 1.0, 1.0], [0.0]], [[0.0]]]
    assert [block.origin.row for block in blocks] == [1, 2]
    joined = text.build(text.Options(cutoff_length=4, attend_across_documents=True), byte_tokenizer, None)(documents)
    assert [list(s.input_ids) for s in joined.examples[0].sequences] == [first + second[:1]]
    assert list(joined.examples[0].sequences[0].weights) == [0.0, 1.0, 1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), min_size=1, max_size=8),
    size=st.integers(2, 40),
    across=st.booleans(),
)
def test_blocks_joined_are_the_stream(byte_tokenizer, documents, size, across) -> None:
    records = [Document(document, origin(row)) for row, document in enumerate(documents, 1)]
    options = text.Options(cutoff_length=size, attend_across_documents=across)
    blocks = text.build(options, byte_tokenizer, None)(records).examples
    stream = list(
        chain.from_iterable(
            [*byte_tokenizer(document, add_special_tokens=False).input_ids, byte_tokenizer.eos_token_id]
            for document in documents
        )
    )
    assert [token for block in blocks for s in block.sequences for token in s.input_ids] == stream
    assert all(block.tokens == size for block in blocks[:-1]) and 0 < blocks[-1].tokens <= size
    if across:
        assert all(len(block.sequences) == 1 for block in blocks)
        assert sum(block.targets for block in blocks) == len(stream) - len(blocks)
    else:
        # a sequence never reaches over a document's end
        eos = byte_tokenizer.eos_token_id
        typed = sum(byte_tokenizer(d, add_special_tokens=False).input_ids.count(eos) for d in documents)
        if not typed:
            assert all(eos not in s.input_ids[:-1] for block in blocks for s in block.sequences)


def test_bos_where_the_tokenizer_adds_it(byte_tokenizer) -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    assert text.bos_ids(byte_tokenizer) == []
    adding = copy.deepcopy(byte_tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", adding.bos_token_id)]
    )
    assert text.bos_ids(adding) == [adding.bos_token_id]
    block = text.build(text.Options(), adding, None)([Document("x", origin(1)), Document("y", origin(2))]).examples[0]
    for sequence in block.sequences:
        assert sequence.input_ids[0] == adding.bos_token_id and sequence.input_ids[-1] == adding.eos_token_id
        assert sequence.weights == (0.0, 1.0, 1.0)


def test_no_eos_token(byte_tokenizer) -> None:
    import copy

    bare = copy.deepcopy(byte_tokenizer)
    bare.eos_token = None
    with pytest.raises(ModelError, match="no EOS token, which pretraining puts between documents"):
        text.build(text.Options(), bare, None)
