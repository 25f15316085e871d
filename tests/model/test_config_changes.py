"""A model's config changed before weights are read: stretched positions, fewer layers, random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from luthier.config.schema import ModelConfig
from luthier.data.packing import pack
from luthier.foundation.errors import ModelError
from luthier.model import loading
from luthier.model.config_changes import known_positions
from luthier.scoring.scorer import Scorer
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_folder

YARN = {"type": "yarn", "factor": 4.0}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "model", "qwen2", max_position_embeddings=32)


def source_of(folder: Path, **settings: Any) -> loading.ModelSource:
    return loading.find(ModelConfig.model_validate({"name": str(folder), **settings}))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found


def frequencies(length: int, **rope_scaling: Any) -> list[float]:
    """By the papers, for heads of width 8, base 10,000 and 32 known positions."""
    width, base, known, factor = 8, 10_000.0, 32, rope_scaling["factor"]
    if rope_scaling["type"] == "dynamic":  # NTK-aware: the base grows with the length
        base *= (factor * max(length, known) / known - (factor - 1)) ** (width / (width - 2))
    plain = [base ** (-2 * i / width) for i in range(width // 2)]
    if rope_scaling["type"] == "linear":
        return [value / factor for value in plain]
    if rope_scaling["type"] == "dynamic":
        return plain

    def dimension(turns: float) -> float:  # YaRN, section 3.2: which pair turns so often over the known positions
        return width * math.log(known / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), width - 1)
    ramp = [min(max((i - low) / (high - low), 0), 1) for i in range(width // 2)]
    return [value / factor * r + value * (1 - r) for value, r in zip(plain, ramp, strict=True)]


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_frequencies_are_those_of_the_papers(kind: str, folder: Path) -> None:
    source = source_of(folder, rope_scaling={"type": kind, "factor": 4.0})
    model = loading.load(source, torch.float32)
    logits(model)
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.tolist() == pytest.approx(frequencies(37, type=kind, factor=4.0), rel=1e-5)
    assert rotary.attention_scaling == pytest.approx(0.1 * math.log(4) + 1 if kind == "yarn" else 1)
    assert known_positions(model.config) == known_positions(loading.config_of(source)) == 128


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_saved_it_is_the_same_model_in_plain_transformers(kind: str, folder: Path, tmp_path: Path) -> None:
    model = loading.load(source_of(folder, rope_scaling={"type": kind, "factor": 4.0}), torch.float32)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    assert not torch.allclose(logits(model), logits(loading.load(source_of(folder), torch.float32)), atol=1e-3)


def test_settings_of_yarn_act(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", max_position_embeddings=512)
    plain = logits(loading.load(source_of(folder, rope_scaling=YARN), torch.float32))
    for setting in (
        {"original_max_position_embeddings": 16},
        {"attention_factor": 2.0},
        {"beta_fast": 2.0},
        {"beta_slow": 0.1},
    ):
        other = logits(loading.load(source_of(folder, rope_scaling=YARN | setting), torch.float32))
        assert not torch.allclose(other, plain, atol=1e-4), setting


@pytest.mark.parametrize("route", ["segmented", "padded"])
def test_dynamic_positions_do_not_remember(route: Any, folder: Path) -> None:
    """A batch after a longer one scores as it did before; both routes alike."""
    model = loading.load(source_of(folder, rope_scaling={"type": "dynamic", "factor": 4.0}), torch.float32)
    scorer = Scorer(model, route)
    middle, long = pack(random_examples([40, 36])), pack(random_examples([90]))
    with torch.no_grad():
        before = scorer(middle).logp_N
        longer = scorer(long).logp_N
        after = scorer(middle).logp_N
    assert torch.equal(before, after)
    fresh = loading.load(source_of(folder, rope_scaling={"type": "dynamic", "factor": 4.0}), torch.float32)
    alone = logits(fresh, long.input_ids_T[None])[0].log_softmax(-1)
    assert torch.allclose(longer, alone[long.source_positions_N, long.targets_N], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("gpt2", {"rope_scaling": YARN}, "a gpt2 has none"),
        ("gpt2", {"config_overrides": {"num_hiden_layers": 1}}, "Did you mean num_hidden_layers"),
        ("llama", {"config_overrides": {"n_layr": 1}}, "which the config of llama does not have"),
        ("llama", {"config_overrides": {"hidden_size": 64}}, "model.embed_tokens.weight would be [300, 64]"),
        ("llama", {"config_overrides": {"num_hidden_layers": 4}}, "is not in the model"),
        ("llama", {"config_overrides": {"attention_bias": True}}, "q_proj.bias would be [32], and is not in the model"),
        ("llama", {"config_overrides": {"num_hidden_layers": "two"}}, "refused by the config"),
        ("llama", {"config_overrides": {"vocab_size": 9}}, "sets vocab_size"),
        ("llama", {"config_overrides": {"rope_scaling": YARN}}, "That is model.rope_scaling"),
        ("llama", {"config_overrides": {"dtype": "float16"}}, "That is model.dtype"),
    ],
)
def test_changes_that_do_not_fit(kind: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = source_of(tiny_folder(tmp_path / "model", kind), **settings)
    with pytest.raises(ModelError) as error:
        loading.config_of(source)
    assert said in str(error.value), str(error.value)


def test_positions_are_stretched_once(folder: Path, tmp_path: Path) -> None:
    loading.load(source_of(folder, rope_scaling=YARN), torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"scaled already \(yarn, factor 4"):
        loading.config_of(source_of(tmp_path, rope_scaling=YARN))


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_the_first_layers_alone(kind: str, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "model", kind)
    key = "n_layer" if kind == "gpt2" else "num_hidden_layers"  # the family's own name, and its usual one
    source = source_of(base, config_overrides={key: 2})
    model = loading.load(source, torch.float32)
    whole = loading.load(source_of(base), torch.float32)
    if kind == "gpt2":
        whole.transformer.h = whole.transformer.h[:2]
    else:
        whole.model.layers = whole.model.layers[:2]
        assert len(model.config.layer_types) == 2
    whole.config.num_hidden_layers = 2
    assert torch.equal(logits(model), logits(whole))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model))


def test_an_override_that_changes_no_shape_acts(folder: Path) -> None:
    config = loading.config_of(source_of(folder, config_overrides={"rms_norm_eps": 0.5}))
    assert config.rms_norm_eps == 0.5
    model = loading.load(source_of(folder, config_overrides={"rms_norm_eps": 0.5}), torch.float32)
    assert not torch.allclose(logits(model), logits(loading.load(source_of(folder), torch.float32)), atol=1e-3)


def test_random_weights_are_the_seed_s_and_of_the_size_that_the_config_says(folder: Path) -> None:
    overrides = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.05, "num_hidden_layers": 1}
    source = source_of(folder, from_scratch=True, config_overrides=overrides)
    config = loading.config_of(source)
    assert (config.hidden_size, getattr(config, "head_dim", 32)) == (128, 32)
    first, again, other = (loading.fresh_weights(config, torch.float32, seed=seed) for seed in (1, 1, 2))
    weights = [model.model.layers[0].mlp.up_proj.weight.detach() for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert float(weights[0].std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(weights[0].mean())) < 0.002


def test_a_new_model_takes_its_vocabulary_from_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from tests.tiny import byte_level_bpe

    words = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(["a fox"], ["<s>", "</s>"], 280), bos_token="<s>", eos_token="</s>"
    )
    words.save_pretrained(tmp_path / "words")
    bare = tmp_path / "bare"  # a config, and nothing else
    bare.mkdir()
    (bare / "config.json").write_text((folder / "config.json").read_text())
    source = source_of(bare, from_scratch=True, tokenizer=str(tmp_path / "words"))
    model = loading.fresh_weights(loading.config_of(source), torch.float32)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(words)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (0, 1, None)
    assert source.tokenizer == tmp_path / "words"
    assert source.fingerprint != source_of(folder, from_scratch=True).fingerprint
    with pytest.raises(ModelError, match="no weights"):
        source_of(bare)
    with pytest.raises(ModelError, match=r"where no tokenizer_config\.json is"):
        source_of(bare, from_scratch=True, tokenizer=str(bare))


def test_an_adapter_is_no_plan_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    with pytest.raises(ModelError, match="is an adapter"):
        source_of(tmp_path, from_scratch=True)


def test_a_model_without_a_longest_row_knows_none() -> None:
    assert transformers.XLNetConfig().max_position_embeddings == -1
    assert known_positions(transformers.XLNetConfig()) is None


@pytest.mark.parametrize(
    ("kind", "room"),
    [
        ("Roberta", 12),
        ("XLMRoberta", 12),
        ("MPNet", 12),
        ("Bert", 14),
        ("DistilBert", 14),
        ("Electra", 14),
        ("GPT2", 14),
    ],
)
def test_as_many_tokens_fit_as_the_table_has_positions_behind_padding(kind: str, room: int) -> None:
    """The forward pass itself tells: one token more has no position."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=14, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    assert known_positions(config) == room
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        model(torch.full((1, room), 5), attention_mask=torch.ones(1, room))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, room + 1), 5), attention_mask=torch.ones(1, room + 1))
