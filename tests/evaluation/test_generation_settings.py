"""Every setting of the generation acts: changing it changes the answers. A new one without a line here fails the first test."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from luthier.config.generation_section import GenerationSettings
from luthier.scoring.decoding import generate
from tests.tiny import tiny_model, tiny_tokenizer

DRAWN = {"do_sample": True, "temperature": 1.3}
BEAMS = {"num_beams": 3}
# setting -> (settings of both, the changed one's value)
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "max_new_tokens": ({}, 3),
    "max_length": ({}, 24),
    "do_sample": ({}, True),
    "temperature": (DRAWN, 0.3),
    "top_k": (DRAWN, 2),
    "top_p": (DRAWN, 0.2),
    "min_p": (DRAWN, 0.9),
    "seed": (DRAWN, 1),
    "num_return_sequences": (DRAWN, 2),
    "num_beams": ({}, 3),
    "length_penalty": (BEAMS, -20.0),
    "early_stopping": ({**BEAMS, "length_penalty": 3.0}, True),
    "repetition_penalty": ({}, 1.8),
    "no_repeat_ngram_size": ({}, 1),
    "stop_strings": ({}, ["e", "s", " ", "a"]),
}
STOPS = tuple(range(2, 60))  # many, so that beams end at different lengths


def answers(**given: Any) -> list[Any]:
    chance = random.Random(0)
    prompts = [[chance.randrange(60, 300) for _ in range(length)] for length in (5, 20, 20, 11, 8, 7)]
    how = GenerationSettings(**{"max_new_tokens": 10, **given})
    with torch.random.fork_rng():
        found = generate(
            tiny_model("llama"), tiny_tokenizer(), prompts, how, stop_token_ids=STOPS, say=lambda line: None
        )
        return sorted((one.row, one.number, one.token_ids, one.text) for one in found)


def test_every_setting_has_a_line_here() -> None:
    assert set(CHANGES) == set(GenerationSettings.model_fields)


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_the_answers(name: str) -> None:
    others, value = CHANGES[name]
    assert answers(**others) != answers(**{**others, name: value})


@pytest.mark.parametrize(
    "given",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"seed": 1}, {"length_penalty": 2.0},
     {"early_stopping": True}, {"num_return_sequences": 2}],
)  # fmt: skip
def test_a_setting_that_would_have_no_effect_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"would have no effect|would be the same"):
        GenerationSettings(**given)


@pytest.mark.parametrize("do_sample", [False, True])
def test_beam_search_gives_no_more_answers_than_beams(do_sample: bool) -> None:
    """Said before weights are read, where transformers would refuse it after."""
    found = answers(num_beams=3, num_return_sequences=3, do_sample=do_sample)
    assert [number for row, number, _, _ in found if row == 0] == [0, 1, 2]
    with pytest.raises(
        ValidationError, match="num_return_sequences is 4, but beam search over 3 gives 3 answers at most"
    ):
        GenerationSettings(num_beams=3, num_return_sequences=4, do_sample=do_sample)
