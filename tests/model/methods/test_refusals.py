"""What a method can't do is said before weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.commands.export import export
from luthier.commands.plan import plan
from luthier.config.plugins import METHODS
from luthier.foundation.errors import ModelError
from luthier.model import loading
from luthier.model.method import Apply
from luthier.model.methods import adalora, lora, unipelt
from tests.tiny import config_for, tiny_folder, tiny_model, write_rows

HOW = Apply(seed=3)
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning", "mam", "unipelt")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def config(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(loading, "weights_at", lambda *_, **__: pytest.fail("weights were read"))
    return config_for(base, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (lora.build(lora.Options(rank=33)), "method.rank is 33, more than all of the target modules"),
        (lora.build(lora.Options(rank=33, target_modules=["q_proj"])), r"all of the .* \(q_proj 32\)"),
        (lora.build(lora.Options(rank=17, target_modules=r".*[kv]_proj")), r"\(k_proj 16, v_proj 16\)"),
        (
            lora.build(lora.Options(rank=20, init="pissa")),
            r"some of the .* \(k_proj 16, v_proj 16\).*no more directions",
        ),
        (lora.build(lora.Options(rank=20, init="olora")), "no more directions"),
        (adalora.build(adalora.Options(initial_rank=40)), "method.initial_rank is 40"),
        (unipelt.build(unipelt.Options(rank=40)), "method.rank is 40"),
    ],
)
def test_a_rank_above_the_layers_width(method: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        method.apply(tiny_model("llama"), HOW)


def test_a_rank_above_some_layers_width_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lora.build(lora.Options(rank=20)).apply(tiny_model("llama"), HOW)
    assert "method.rank 20 is above the width of k_proj 16, v_proj 16" in capsys.readouterr().err
    lora.build(lora.Options(rank=32, target_modules=["c_fc"])).apply(tiny_model("gpt2"), HOW)
    assert not capsys.readouterr().err


def test_new_tokens_beside_a_head_with_a_bias() -> None:
    """Phi-2's. Whole, the head keeps its bias; row by row peft would compute it without."""
    from transformers import PhiConfig, PhiForCausalLM

    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}

    def phi(**settings: Any) -> Any:
        torch.manual_seed(0)
        model = PhiForCausalLM(PhiConfig(**sizes, num_attention_heads=4, pad_token_id=0, **settings)).eval()
        torch.nn.init.normal_(model.lm_head.bias)
        return model

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.arange(3, 40)[None]).logits

    how = Apply(seed=3, new_token_ids=[58, 59])
    with pytest.raises(ModelError, match="rows of lm_head must learn, and peft computes such a head without its bias"):
        lora.build(lora.Options()).apply(phi(), how)
    whole = lora.build(lora.Options(modules_to_save=["lm_head"])).apply(phi(), how)
    assert torch.allclose(logits(whole), logits(phi()), atol=1e-6)
    tied = phi(tie_word_embeddings=True)
    for method, told in ((lora.Options(), how), (lora.Options(modules_to_save=["embed_tokens"]), HOW)):
        with pytest.raises(ModelError, match="is tied to the embedding and has a bias"):
            lora.build(method).apply(tied, told)


@pytest.mark.parametrize("ends", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_new_tokens_beside_an_update_of_an_end(ends: list[str]) -> None:
    """peft refuses it too, in words that name no way out."""
    how, targets = Apply(seed=3, new_token_ids=[58, 59]), [*ends, "q_proj"]
    with pytest.raises(ModelError, match=f"whose rows of {' and '.join(ends)} must learn, and peft can't"):
        lora.build(lora.Options(target_modules=targets)).apply(tiny_model("llama"), how)
    with pytest.raises(ModelError, match="rows of lm_head must learn"):
        lora.build(lora.Options(target_modules=r"lm_head|.*\.q_proj")).apply(tiny_model("llama"), how)
    for options in ({"target_modules": targets, "modules_to_save": ends}, {"target_modules": ["q_proj"]}):
        model = lora.build(lora.Options(**options)).apply(tiny_model("llama"), how)
        model(input_ids=torch.arange(3, 40)[None])


def test_a_tied_end_that_peft_would_leave_behind() -> None:
    with pytest.raises(ModelError, match="names wte, which GPT2LMHeadModel ties to its other end") as caught:
        lora.build(lora.Options(modules_to_save=["wte"])).apply(tiny_model("gpt2"), HOW)
    assert "Name lm_head instead" in str(caught.value)
    model = lora.build(lora.Options(modules_to_save=["lm_head"])).apply(tiny_model("gpt2"), HOW)
    whole = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if "modules_to_save" in name}
    assert len(whole) == 1
    lora.build(lora.Options(modules_to_save=["ln_f"])).apply(tiny_model("gpt2"), HOW)  # no warning of ties


@pytest.mark.parametrize("name", PROMPTS)
def test_virtual_tokens_have_no_segmented_route(name: str, config: dict[str, Any]) -> None:
    config |= {"model": {"name": config["model"], "attention": "segmented"}, "method": name}
    with pytest.raises(ModelError, match=r"attention is segmented, .* virtual tokens stand before every row"):
        plan(config)


@pytest.mark.parametrize("name", ["prefix_tuning", "mam", "unipelt"])
def test_a_prefix_and_gradient_checkpointing(name: str, config: dict[str, Any]) -> None:
    config["training"]["gradient_checkpointing"] = True
    with pytest.raises(ModelError, match="which gradient checkpointing switches off"):
        plan({**config, "method": name})


@pytest.mark.parametrize("name", [*PROMPTS, "adapter"])
def test_what_can_not_be_merged(name: str, base: Path, config: dict[str, Any], tmp_path: Path) -> None:
    """Neither exported so nor trained on: a new adapter would need it merged first."""
    module = METHODS.load(name)
    method = module.build(module.Options())
    model = method.apply(tiny_model("llama"), Apply(seed=3, base_name=str(base)))
    (tmp_path / "made").mkdir()
    method.save(model.to(torch.float32), tmp_path / "made")
    with pytest.raises(ModelError, match=rf"of (method )?{name}, can't be merged into its base"):
        export(str(tmp_path / "made"), tmp_path / "merged")
    with pytest.raises(ModelError, match="can't be merged into its base"):
        plan({**config, "model": str(tmp_path / "made")})
