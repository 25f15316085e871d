"""Answers of transformers' own `generate` on batches: what pads a row has no part in its answer."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.config.generation_section import GenerationSettings
from luthier.model.generation import Job, by_transformers
from tests.tiny import tiny_model, tiny_tokenizer

PROMPTS = [[40 + 7 * row + place for place in range(length)] for row, length in enumerate((3, 40, 21, 3, 9, 40))]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize(
    "how", [{"repetition_penalty": 5.0}, {"repetition_penalty": 0.5}, {"no_repeat_ngram_size": 1}], ids=str
)
def test_padding_is_no_token_of_the_prompt(how: dict[str, Any], beams: int) -> None:
    """Rows are padded with the token that ends an answer, as tokenizers without a padding token have it."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    settings = GenerationSettings(max_new_tokens=6, num_beams=beams, **how)

    def answers(rows: list[int], *stops: int) -> dict[int, tuple[int, ...]]:
        job = Job(model, tokenizer, [PROMPTS[row] for row in rows], rows, settings, stops)
        return {one.row: one.token_ids for one in by_transformers(job)}

    stop = answers([0])[0][2]  # so that the shortest prompt's answer would end with it
    tokenizer.pad_token_id = stop
    alone = {row: answers([row], stop)[row] for row in range(len(PROMPTS))}
    assert answers([*range(len(PROMPTS))], stop) == alone
