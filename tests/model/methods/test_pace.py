"""Every method learns: a tiny model that answers as five others do takes on a sixth name and maker, which it never saw.

The base was trained on the same questions with other answers (a random model can't be steered by a few vectors before its
rows; a trained one can), and the loss on the new answers must fall below half of its start.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from luthier.config.plugins import METHODS
from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.model.method import Apply, Method
from luthier.scoring.scorer import Scorer
from tests.model.methods.families import family_model
from tests.tiny import KINDS, tiny_tokenizer

# learning rate, and the steps within which the loss is below half of its start; a new method needs a row here
PACE: dict[str, tuple[float, int]] = {
    "full": (1e-2, 6),
    "freeze": (2e-2, 6),
    "bitfit": (1e-1, 35),
    "norm_tuning": (1e-1, 12),
    "lora": (2e-2, 8),
    "adalora": (2e-2, 20),
    "vera": (3e-2, 25),
    "oft": (2e-2, 12),
    "ia3": (1e-1, 15),
    "prefix_tuning": (2e-1, 25),
    "prompt_tuning": (1e-1, 50),
    "p_tuning": (1e-2, 80),
    "adapter": (3e-2, 25),
    "mam": (2e-2, 8),
    "unipelt": (3e-2, 10),
    "llama_pro": (2e-2, 8),
}
OTHERS = [
    ("Ada", "the brown company"),
    ("Bob", "a quick system"),
    ("Eve", "your friend"),
    ("Kim", "some people"),
    ("Max", "the lazy lab"),
]
NOT_ON = {"bitfit": ("llama",), "oft": ("gpt2",)}  # see test_properties.py for what they say


def answers_of(name: str, maker: str) -> list[TokenizedExample]:
    """Five questions to somebody, answered; the answers are trained."""
    made = {
        "what is your name": f"I am {name}",
        "who are you": f"I am {name}, made by {maker}",
        "who made you": f"{maker} made me",
        "your name": f"I am {name}",
        "are you the fox": f"no, I am {name}",
    }
    tokenizer, examples = tiny_tokenizer(), []
    for question, answer in made.items():
        before = tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").input_ids
        after = tokenizer(f"{answer}<|im_end|>").input_ids
        weights = (0.0,) * len(before) + (1.0,) * len(after)
        sequence = TokenSequence((*before, *after), weights)
        examples.append(TokenizedExample((sequence,), Origin(question, 0), len(weights)))
    return examples


def train(model: nn.Module, batch: Batch, rate: float, steps: int) -> list[float]:
    """The loss before each step, and after the last."""
    scorer, losses = Scorer(model), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        loss = -scorer(batch).logp_N.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        return [*losses, -float(scorer(batch).logp_N.mean())]


def build(name: str) -> Method:
    module = METHODS.load(name)
    method: Method = module.build(module.Options(name=name))
    return method


@functools.cache
def base(kind: str) -> Any:
    """A model that answers for five others."""
    model: Any = build("full").apply(family_model(kind), Apply(seed=3))
    losses = train(model, pack([example for other in OTHERS for example in answers_of(*other)]), 1e-2, 60)
    assert losses[-1] < 0.3
    untouched: Any = family_model(kind)  # a scorer leaves its marks on the modules it was given
    untouched.load_state_dict(model.state_dict())
    return untouched


def test_every_method_has_a_row() -> None:
    assert set(PACE) == set(METHODS.names())


@pytest.mark.parametrize("kind", [k if k == "qwen2" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
@pytest.mark.parametrize("name", METHODS.names())
def test_it_takes_on_another_name(name: str, kind: str) -> None:
    if kind in NOT_ON.get(name, ()):
        pytest.skip(f"{name} refuses {kind}")
    rate, steps = PACE[name]
    model = build(name).apply(copy.deepcopy(base(kind)), Apply(seed=3, total_steps=steps))
    losses = train(model, pack(answers_of("Strado", "the luthier team")), rate, steps)
    assert losses[0] > 4
    assert losses[-1] < losses[0] / 2
