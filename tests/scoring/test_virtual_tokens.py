"""Virtual tokens in the Scorer against peft's own forward and loss, and what can't be done with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.config.generation_section import GenerationSettings
from luthier.config.plugins import METHODS
from luthier.data.packing import pack
from luthier.foundation.errors import ModelError
from luthier.model.generation import Job, by_transformers
from luthier.model.method import Apply
from luthier.model.quiet import quiet_peft
from luthier.scoring.decoding import answer
from luthier.scoring.padded import unroll
from luthier.scoring.scorer import Scorer
from tests.model.methods.families import family_model
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_tokenizer

HOW = Apply(seed=3, tokenizer=tiny_tokenizer())
CHOICES: list[dict[str, Any]] = [
    {"name": "prompt_tuning"},
    {"name": "p_tuning", "encoder": "mlp"},
    {"name": "p_tuning", "encoder": "lstm"},
    {"name": "prefix_tuning", "projection": False},
    {"name": "prefix_tuning", "projection": True},
]


def tuned(choice: dict[str, Any], kind: str) -> Any:
    module = METHODS.load(choice["name"])
    return module.build(module.Options(**choice)).apply(family_model(kind), HOW)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "mistral"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_values_and_gradients_are_pefts(choice: dict[str, Any], kind: str) -> None:
    """Rows of two lengths; peft's loss is the mean over all targets, which the Scorer's log-probabilities must give."""
    model = tuned(choice, kind).eval()
    batch = pack(random_examples([12, 7]))
    logp_N = Scorer(model)(batch).logp_N
    (-logp_N.mean()).backward()
    own = gradients(model)

    rows = unroll(batch)
    labels_RL = torch.full_like(rows.input_ids_RL, -100)
    labels_RL[rows.row_N, rows.column_N + 1] = batch.targets_N
    with quiet_peft():
        theirs = model(input_ids=rows.input_ids_RL, attention_mask=rows.attention_mask_RL, labels=labels_RL).loss
    theirs.backward()
    assert float(-logp_N.detach().mean()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    reference = gradients(model)
    assert own.keys() == reference.keys()
    largest = max(float(gradient.norm()) for gradient in reference.values())
    for name, gradient in reference.items():
        assert float((own[name] - gradient).norm()) < 1e-4 * max(float(gradient.norm()), 1e-2 * largest), name


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_answers_are_the_likeliest_tokens_of_a_full_forward(choice: dict[str, Any]) -> None:
    """Generation with its cache against one forward pass for every token."""
    model = tuned(choice, "llama").eval()
    prompt, tokenizer = list(range(40, 52)), tiny_tokenizer()
    ids = list(prompt)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    text = answer(model, tokenizer, prompt, GenerationSettings(max_new_tokens=6), (299,)).text
    assert text == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: "-".join(map(str, choice.values())))
def test_answers_to_prompts_of_several_lengths_are_those_to_each_alone(choice: dict[str, Any], kind: str) -> None:
    """The virtual tokens stand next to a prompt, whatever stands beside it."""
    model = tuned(choice, kind).eval()
    for parameter in model.prompt_encoder.parameters():
        parameter.data.mul_(4)  # so that what is attended to depends on where it stands
    prompts = [[40 + 7 * row + place for place in range(length)] for row, length in enumerate((3, 40, 21, 3, 9, 40))]
    how = GenerationSettings(max_new_tokens=6)

    def answers(rows: list[int]) -> dict[int, tuple[int, ...]]:
        job = Job(model, tiny_tokenizer(), [prompts[row] for row in rows], rows, how, (299,))
        return {one.row: one.token_ids for one in by_transformers(job)}

    assert answers([*range(6)]) == {row: answers([row])[row] for row in range(6)}


def test_a_text_is_where_the_embeddings_start() -> None:
    model = tuned(
        {"name": "prompt_tuning", "init": "text", "text": "what is the name", "num_virtual_tokens": 30}, "llama"
    )
    ids = tiny_tokenizer()("what is the name", add_special_tokens=False).input_ids
    expected = model.word_embeddings(torch.tensor((ids * 30)[:30]))
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, expected)


def test_what_virtual_tokens_can_not_do() -> None:
    with pytest.raises(ModelError, match="virtual tokens stand before every row"):
        Scorer(tuned({"name": "prompt_tuning"}, "llama"), "segmented")
    model = tuned({"name": "prefix_tuning"}, "llama")
    model.get_base_model().activation_checkpointing_enable()
    with pytest.raises(ModelError, match="gradient_checkpointing"):
        Scorer(model)
