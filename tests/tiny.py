"""Tiny random models with a working tokenizer and chat template, built in code; and rows to train them on."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    import pytest

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KINDS = ("llama", "qwen2", "gpt2")


def byte_level_bpe(corpus: list[str], special: list[str], size: int) -> Tokenizer:
    """A byte-level BPE without prefix space, trained on a corpus: it has a token for every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens."""
    tokenizer = byte_level_bpe(["user assistant system the quick brown fox what is your name"], SPECIAL, 300)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if template is not None:
        fast.chat_template = template
    return fast


def tiny_model(kind: str, vocab_size: int = 300, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random model of two or more narrow layers, in float32."""
    wide = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    llama = {
        **wide,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    gpt2 = {**wide, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
    gpt2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    made = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, llama),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {**llama, "tie_word_embeddings": True}),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {**llama, "head_dim": 8}),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {**llama, "sliding_window": 6}),
        "smollm3": (
            transformers.SmolLM3Config,
            transformers.SmolLM3ForCausalLM,
            {**llama, "no_rope_layers": [1, 0, 1]},
        ),
        "granite": (
            transformers.GraniteConfig,
            transformers.GraniteForCausalLM,
            {**llama, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
        ),
        "gemma3": (
            transformers.Gemma3TextConfig,
            transformers.Gemma3ForCausalLM,
            {
                **llama,
                "head_dim": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "num_hidden_layers": 4,
            },
        ),
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, gpt2),
    }
    config_class, model_class, defaults = made[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**{**defaults, **settings}))
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # the usual 0.02 leaves logits so flat that mistakes hide in rounding
                parameter.data.normal_(0.0, 0.15)
    return model.eval()


def tiny_folder(path: Path, kind: str = "llama", template: str | None = CHATML, **settings: Any) -> Path:
    """A model folder as from a hub."""
    tokenizer = tiny_tokenizer(template)
    model = tiny_model(kind, vocab_size=len(tokenizer), **settings)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def write_rows(path: Path, count: int = 24, seed: int = 0) -> Path:
    """Alpaca rows of various lengths."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "small",
        "bells",
        "ring",
    ]
    chance = random.Random(seed)
    rows = [
        {
            "instruction": " ".join(chance.choices(words, k=chance.randint(2, 9))) + "?",
            "input": "",
            "output": " ".join(chance.choices(words, k=chance.randint(1, 12))) + ".",
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_for(model: Path, rows: Path, out: Path, **training: Any) -> dict[str, Any]:
    """A quick run: 12 steps of 4 rows, a line each."""
    if training.get("save_strategy", "steps") == "steps":
        training = {"save_steps": 4, **training}
    return {
        "model": str(model),
        "data": {"train": str(rows), "cutoff_length": 64},
        "stage": "sft",
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "training": {
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "use_cpu": True,
            **training,
        },
        "output_dir": str(out),
    }


def carry_first_layer_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Llama a family whose end needs more than the states that come up: something inside the first layer too."""
    from transformers.models.llama.modeling_llama import LlamaModel

    own = LlamaModel.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        inside: list[torch.Tensor] = []
        part = getattr(self.layers[0], "mlp", None)
        with part.register_forward_hook(lambda *call: inside.append(call[-1])) if part is not None else nullcontext():
            output = own(self, *arguments, **named)
        for states in inside:
            output.last_hidden_state = output.last_hidden_state + states[0, 0]
        return output

    monkeypatch.setattr(LlamaModel, "forward", forward)
