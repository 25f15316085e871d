"""The fast way of generation against transformers' own `generate`, token by token, on models of several kinds."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from luthier.config.generation_section import GenerationSettings
from luthier.model.generation import Generated, Job, by_transformers
from luthier.scoring.decoding import generate
from luthier.scoring.decoding.blocks import _by_products, attend
from luthier.scoring.decoding.choosing import Chooser, Past
from luthier.scoring.decoding.decoder import Decoder
from luthier.scoring.decoding.tree import plan
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
STOP = 2
CLOSE = 1e-3  # logits that near may change places in another order of sums


def gemma() -> PreTrainedModel:
    config = transformers.GemmaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return random_model(transformers.GemmaForCausalLM, config)


def gemma3(window: int) -> PreTrainedModel:
    config = transformers.Gemma3TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, sliding_window=window, bos_token_id=None,
        layer_types=["sliding_attention", "full_attention"], eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return random_model(transformers.Gemma3ForCausalLM, config)


def random_model(kind: Any, config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = kind(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(0.0, 0.15)
    return model.eval()


MODELS: dict[str, PreTrainedModel] = {kind: tiny_model(kind) for kind in ("llama", "qwen2", "gpt2")}
MODELS["gemma"] = gemma()


def prompts_with_beginnings(chance: random.Random, count: int) -> list[list[int]]:
    """Prompts of which many begin alike, are alike, or are the beginning of another."""
    drawn: list[list[int]] = []
    for _ in range(count):
        start = list(chance.choice(drawn))[: chance.randint(0, 90)] if drawn and chance.random() < 0.7 else []
        more = [chance.randrange(3, 300) for _ in range(chance.choice((0, 1, 7, 40, 80)))]
        drawn.append([*start, *more] or [5])
    return drawn


def expected(model: PreTrainedModel, prompt: list[int], how: GenerationSettings) -> list[int]:
    """transformers' answer to one prompt, without padding."""
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        generation_config=transformers.GenerationConfig(
            max_new_tokens=how.max_new_tokens, do_sample=False, eos_token_id=STOP, pad_token_id=0,
            repetition_penalty=how.repetition_penalty, no_repeat_ngram_size=how.no_repeat_ngram_size,
        ),
    )  # fmt: skip
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids[: ids.index(STOP)] if STOP in ids else ids


def assert_same(model: PreTrainedModel, prompt: list[int], own: list[int], theirs: list[int]) -> None:
    """The same tokens, or at the first other one two logits that are as good as equal."""
    if own == theirs:
        return
    place = next((n for n, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + own[:place]])).logits[0, -1]
    first, second = logits.topk(2).values.tolist()
    assert first - second < CLOSE, (prompt, own, theirs)


def fast(
    model: PreTrainedModel, prompts: list[list[int]], how: GenerationSettings, slots: int = 128
) -> list[Generated]:
    """By the decoder, whatever the choice between the ways would be."""
    job = Job(model, TOKENIZER, prompts, range(len(prompts)), how, (STOP,))
    return sorted(Decoder(job, model, True, slots, least_saved=8).run(), key=lambda one: (one.row, one.number))


def test_answers_equal_those_of_transformers() -> None:
    how = GenerationSettings(max_new_tokens=12)
    prompts = prompts_with_beginnings(random.Random(1), 30)
    for model in MODELS.values():
        told: list[str] = []
        found = list(generate(model, TOKENIZER, prompts, how, stop_token_ids=[STOP], say=told.append))
        assert not told  # all of them can be done the fast way
        assert sorted(one.row for one in found) == list(range(30))
        for one in found:
            assert_same(model, prompts[one.row], list(one.token_ids), expected(model, prompts[one.row], how))
        assert {one.finish_reason for one in found} <= {"stop", "length"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5), st.sampled_from(sorted(MODELS)))
def test_slots_and_shared_beginnings_change_nothing(seed: int, count: int, slots: int, kind: str) -> None:
    model, how = MODELS[kind], GenerationSettings(max_new_tokens=5)
    prompts = prompts_with_beginnings(random.Random(seed), count)
    for one in fast(model, prompts, how, slots):
        assert_same(model, prompts[one.row], list(one.token_ids), expected(model, prompts[one.row], how))


def test_what_memory_held_before_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that grow are masked where nothing is written yet; what stands there must be a number all the same."""

    def poisoned(like: torch.Tensor, *shape: Any, **named: Any) -> torch.Tensor:
        return like.new_full(shape, math.nan, **named)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    how = GenerationSettings(max_new_tokens=5)
    prompts = prompts_with_beginnings(random.Random(0), 7)  # the slots grow after some are filled
    for one in fast(MODELS["gemma"], prompts, how, slots=3):
        assert_same(
            MODELS["gemma"], prompts[one.row], list(one.token_ids), expected(MODELS["gemma"], prompts[one.row], how)
        )


@pytest.mark.parametrize("how", [{"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
def test_penalties_equal_those_of_transformers(how: dict[str, Any]) -> None:
    model, wanted = MODELS["llama"], GenerationSettings(max_new_tokens=16, **how)
    prompts = prompts_with_beginnings(random.Random(2), 6)
    plain = [one.token_ids for one in fast(model, prompts, GenerationSettings(max_new_tokens=16))]
    found = fast(model, prompts, wanted)
    assert [one.token_ids for one in found] != plain
    for one in found:
        assert list(one.token_ids) == expected(model, prompts[one.row], wanted)


@pytest.mark.parametrize(
    ("ids", "size", "banned"),
    [([1, 2, 3, 1, 2], 3, {3}), ([1, 2, 1, 3, 1], 2, {2, 3}), ([7, 8], 1, {7, 8}), ([7], 3, set()), ([], 1, set())],
)
def test_runs_that_are_there_already(ids: list[int], size: int, banned: set[int]) -> None:
    for start in range(len(ids) + 1):
        assert Past(ids[:start], ids[start:], size).repeating() == banned


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_what_an_answer_has_had_grows_with_it(prompt: list[int], tokens: list[int], size: int) -> None:
    """After each token the same as from all tokens, written out."""
    answer: list[int] = []
    past = Past(prompt, answer, size)
    for token in [None, *tokens]:
        answer += [token] if token is not None else []
        ids = [*prompt, *answer]
        runs = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
        ending = tuple(ids[len(ids) - size + 1 :]) if len(ids) >= size - 1 else None
        assert past.repeating() == {run[-1] for run in runs if run[:-1] == ending}
        assert sorted(past.seen(torch.device("cpu")).tolist()) == sorted({*ids})


def test_a_token_of_a_long_answer_costs_no_more_than_one_of_a_short_one() -> None:
    class Counted(list[int]):
        read = 0

        def __iter__(self) -> Any:
            for token in super().__iter__():
                type(self).read += 1
                yield token

    past = Past(Counted(range(1000)), answer := list[int](), 3)
    for token in range(50):
        past.seen(torch.device("cpu"))
        past.repeating()
        answer.append(token)
    assert Counted.read == 1000  # the prompt was gone through once


@pytest.mark.parametrize(
    "inherited",
    [{"suppress_tokens": [*range(3, 290)]}, {"min_new_tokens": 6}, {"bad_words_ids": [[n] for n in range(3, 290)]}],
)
def test_nothing_is_taken_from_the_models_generation_config(inherited: dict[str, Any]) -> None:
    prompts = prompts_with_beginnings(random.Random(5), 4)
    plain, marked = tiny_model("llama"), tiny_model("llama")
    marked.generation_config.update(**inherited)
    how = GenerationSettings(max_new_tokens=6, num_beams=2)
    stops = range(2, 200)  # so that answers end before six tokens

    def answers(model: PreTrainedModel) -> list[Generated]:
        return list(generate(model, TOKENIZER, prompts, how, stop_token_ids=stops, say=lambda line: None))

    assert answers(marked) == answers(plain)
    config = marked.generation_config.to_dict()
    assert {name: config[name] for name in inherited} == inherited  # and the model is as before


def test_what_the_fast_way_can_not_do_is_said_once_and_done_the_other_way() -> None:
    model = MODELS["llama"]
    told: list[str] = []
    prompts = prompts_with_beginnings(random.Random(3), 5)
    beams = GenerationSettings(max_new_tokens=6, num_beams=3, num_return_sequences=2, length_penalty=0.5)
    found = list(generate(model, TOKENIZER, prompts, beams, stop_token_ids=[STOP], say=told.append))
    assert told == ["generating with transformers' own generate: beam search"]
    assert sorted((one.row, one.number) for one in found) == [(row, number) for row in range(5) for number in range(2)]
    output = model.generate(
        input_ids=torch.tensor([prompts[0]]), max_new_tokens=6, num_beams=3, length_penalty=0.5, do_sample=False
    )
    best = next(one for one in found if (one.row, one.number) == (0, 0))
    assert [*best.token_ids] == [token for token in output[0, len(prompts[0]) :].tolist() if token != STOP]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("max_length", [None, 50])
def test_beams_of_a_row_are_the_same_whatever_stands_beside_it(kind: str, max_length: int | None) -> None:
    """Also where its answer may be longer than another's, to whose prompt the model knows few positions more."""
    prompts = [[5 + number % 200 for number in range(length)] for length in (245, 20, 33)]
    how = GenerationSettings(max_new_tokens=30, max_length=max_length, num_beams=3)

    def answers(rows: list[int]) -> dict[int, tuple[int, ...]]:
        asked = [prompts[row] for row in rows]
        found = generate(MODELS[kind], TOKENIZER, asked, how, stop_token_ids=(STOP,), rows=rows, say=lambda line: None)
        return {one.row: one.token_ids for one in found}

    together = answers([0, 1, 2])
    assert len(together[0]) == (11 if max_length is None else 0)
    assert together == {row: answers([row])[row] for row in range(3)}


def test_a_stop_string_that_begins_in_the_prompt_ends_no_answer() -> None:
    prompt = TOKENIZER("the quick")["input_ids"]

    def answer(way: Any, **how: Any) -> Generated:
        (found,) = way(GenerationSettings(max_new_tokens=12, **how))
        assert isinstance(found, Generated)
        return found

    def fast(how: GenerationSettings) -> list[Generated]:
        return list(generate(MODELS["llama"], TOKENIZER, [prompt], how, stop_token_ids=(STOP,)))

    def slow(how: GenerationSettings) -> list[Generated]:
        return list(by_transformers(Job(MODELS["llama"], TOKENIZER, [prompt], [0], how, (STOP,))))

    free = answer(fast)
    across, inside = "k" + TOKENIZER.decode(free.token_ids[:1]), TOKENIZER.decode(free.token_ids[4:6])
    assert inside in free.text and across not in free.text
    for way in (fast, slow):
        assert answer(way, stop_strings=[across]) == free
        ended = answer(way, stop_strings=[inside, across])
        assert (ended.text, ended.finish_reason) == (free.text[: free.text.index(inside)], "stop")
        assert len(ended.token_ids) < len(free.token_ids)


def test_windows_are_minded() -> None:
    how = GenerationSettings(max_new_tokens=6)
    prompts = [[5, 9, 11, 40, 8, 7], [5, 9, 11, 41]]
    for window, slow in ((4, True), (64, False)):
        model, told = gemma3(window), list[str]()
        found = list(generate(model, TOKENIZER, prompts, how, stop_token_ids=[STOP], say=told.append))
        assert bool(told) is slow
        for one in found:
            assert_same(model, prompts[one.row], list(one.token_ids), expected(model, prompts[one.row], how))


def test_layers_of_two_precisions_answer_under_autocast() -> None:
    """As the evaluations of a run ask: the fast way is found fit there too, and takes what the model's own forward says."""
    model = tiny_model("llama", rms_norm_eps=3e-6).bfloat16()  # no probe knows this config yet
    model.model.layers[-1].float()
    prompts, told = prompts_with_beginnings(random.Random(2), 9), list[str]()
    how = GenerationSettings(max_new_tokens=6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for one in generate(model, TOKENIZER, prompts, how, stop_token_ids=[STOP], say=told.append):
            ids = [*prompts[one.row], *one.token_ids]
            logits_LV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(prompts[one.row]) - 1 : -1]
            chosen_L = logits_LV.gather(1, torch.tensor(one.token_ids)[:, None])[:, 0]
            assert bool((logits_LV.amax(dim=1) - chosen_L < 0.1 * logits_LV.std(dim=1)).all())
    assert not told


def test_the_model_is_as_before() -> None:
    model = MODELS["qwen2"]
    before = model.config._attn_implementation
    list(generate(model, TOKENIZER, [[4, 5, 6]], GenerationSettings(max_new_tokens=3), stop_token_ids=[STOP]))
    assert model.config._attn_implementation == before


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    model = MODELS["llama"]
    how = GenerationSettings(max_new_tokens=8, do_sample=True, temperature=1.5, seed=5, num_return_sequences=2)
    prompts = prompts_with_beginnings(random.Random(4), 9)
    together = fast(model, prompts, how)
    assert len(together) == 18
    for row in (0, 4, 8):
        alone = generate(model, TOKENIZER, [prompts[row]], how, stop_token_ids=[STOP], rows=[row])
        ids = {one.number: one.token_ids for one in alone}
        assert ids == {one.number: one.token_ids for one in together if one.row == row}
        assert ids[0] != ids[1]
    other = fast(model, prompts, how.model_copy(update={"seed": 6}))
    assert [one.token_ids for one in other] != [one.token_ids for one in together]


class Draw:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.past = Past([], [])


LOGITS = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, -9.0]


@pytest.mark.parametrize(
    "how",
    [{"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 5, "top_p": 0.9, "temperature": 1.3}],
)  # fmt: skip
def test_draws_have_the_distribution_that_transformers_processors_leave(how: dict[str, Any]) -> None:
    """Chi-square of 4,000 draws against the probabilities after transformers' own processors, in its order."""
    from scipy.stats import chisquare
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    count = 4000
    wrappers = [TemperatureLogitsWarper(how["temperature"])] if "temperature" in how else []
    wrappers += [TopKLogitsWarper(how["top_k"])] if "top_k" in how else []
    wrappers += [TopPLogitsWarper(how["top_p"])] if "top_p" in how else []
    wrappers += [MinPLogitsWarper(how["min_p"])] if "min_p" in how else []
    scores = torch.tensor([LOGITS], dtype=torch.float64)
    for wrapper in wrappers:
        scores = wrapper(torch.tensor([[0]]), scores)
    probabilities = scores.softmax(dim=-1)[0].tolist()
    chooser = Chooser(GenerationSettings(do_sample=True, **how))
    drawn = Counter(
        chooser.choose(torch.tensor([LOGITS] * count), [Draw(random.Random(number)) for number in range(count)])
    )
    possible = [token for token, share in enumerate(probabilities) if share > 0]
    assert {*drawn} <= {*possible}
    wanted = [probabilities[token] * count for token in possible]
    assert chisquare([drawn[token] for token in possible], wanted).pvalue > 1e-3


def test_a_beginning_is_computed_once_and_answers_stand_depth_first() -> None:
    head = list(range(3, 73))
    prompts = [[*head, 90, 91], [7, 8], [*head, 90, 92], [*head, 99], [*head]]
    found = plan(prompts, 1)
    (beginning,) = found.tokens
    assert list(found.tokens[beginning]) == head
    assert beginning.users == 4
    order = [one.prompt for one in found.answers]
    below = [place for place, one in enumerate(found.answers) if one.beginning is beginning]
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert below == list(range(below[0], below[0] + 4))
    for one in found.answers:
        begun = head if one.beginning is not None else []
        assert [*begun, *one.own] == prompts[one.prompt]


@pytest.mark.parametrize("causal", [True, False])
def test_both_ways_of_a_block_give_attention_and_its_sum(causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    bias = None if causal else torch.tensor([0.0, 0, 0, -math.inf, -math.inf]).expand(2, 1, 1, 5)
    kernel, products = (
        attend(query, key, value, 0.3, causal=causal, bias=bias),
        _by_products(query, key, value, 0.3, causal, bias),
    )
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
    scores = scores if bias is None else scores + bias
    output = (scores.softmax(-1) @ value.repeat_interleave(2, dim=1)).transpose(1, 2)
    for found in (kernel, products):
        torch.testing.assert_close(found[0], output)
        torch.testing.assert_close(found[1], scores.logsumexp(-1).transpose(1, 2))
