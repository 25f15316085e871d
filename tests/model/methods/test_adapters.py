"""Adapters that are there already: several on one model, weighted, made into one, trained further; and those that don't fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

import luthier
from luthier.cli import main
from luthier.commands.chat import chat
from luthier.commands.export import export
from luthier.commands.plan import plan
from luthier.config.plugins import METHODS
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ModelError, UserError
from luthier.model import loading
from luthier.model.adapters import AdapterPart
from luthier.model.continuing import continued_options
from luthier.model.method import METHOD_STATE, Apply, save_for_resuming
from luthier.model.methods import lora
from luthier.model.quiet import quiet_peft
from tests.tiny import config_for, tiny_folder, tiny_model, tiny_tokenizer, write_rows

IDS = torch.arange(3, 40)[None]
SCALE = 16 / 4  # alpha / rank


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)  # a third of the time


Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makes an adapter on the base that changes what it says; the same settings give the same one."""
    kept: dict[str, Path] = {}

    def make(seed: int = 1, on: dict[str, Any] | None = None, **options: Any) -> Path:
        key = json.dumps([seed, on, options])
        if key not in kept:
            kept[key] = folder = tmp_path_factory.mktemp("adapter")
            module = METHODS.load(options.setdefault("name", "lora"))
            method = module.build(module.Options(**{**({"rank": 4} if options["name"] == "lora" else {}), **options}))
            bare = tiny_model("llama", vocab_size=len(tiny_tokenizer()), **(on or {}))
            model = method.apply(bare, Apply(seed=seed, base_name=str(base), tokenizer=tiny_tokenizer()))
            for index, (name, parameter) in enumerate(model.named_parameters()):
                if parameter.requires_grad and "lora_A" not in name:
                    chance = torch.Generator().manual_seed(100 * seed + index)
                    parameter.data += 0.05 * torch.randn(parameter.shape, generator=chance)
            method.save(model, folder)
            save_for_resuming(method, model, folder)
        return kept[key]

    return make


def logits(base: Path | str, adapters: list[Any] | None = None, combine: Any = "stack") -> Tensor:
    source = loading.find(ModelConfig.model_validate({"name": str(base), "adapters": adapters, "combine": combine}))
    with torch.no_grad():
        found: Tensor = loading.load(source, torch.float32).eval()(input_ids=IDS).logits
    return found


def update(folder: Path, name: str) -> Tensor:
    """B A of one module, at the adapter's scale; transposed for an embedding, zero where the adapter is not on it."""
    tensors = load_file(folder / "adapter_model.safetensors")
    if f"base_model.model.{name}.lora_embedding_A" in tensors:
        down, up = (tensors[f"base_model.model.{name}.lora_embedding_{factor}"] for factor in "AB")
        return SCALE * (up @ down).T
    if f"base_model.model.{name}.lora_A.weight" not in tensors:
        return torch.zeros(())
    return SCALE * tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]


def summed(base: Path, parts: list[tuple[Path, float]]) -> Tensor:
    """Logits of W + w1 B1 A1 + w2 B2 A2, by hand."""
    model = loading.weights_at(base, torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                for folder, weight in parts:
                    module.weight += weight * update(folder, name)
        found: Tensor = model(input_ids=IDS).logits
    return found


# --- several ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all-linear", ["embed_tokens", "q_proj", "lm_head"]])
@pytest.mark.parametrize(
    ("combine", "weights"), [("stack", (1, 1)), ("stack", (0.5, -2)), ("cat", (0.7, 0.3)), ("svd", (0.7, 0.3))]
)
def test_several_are_the_weighted_sum_of_their_updates(
    combine: str, weights: tuple[float, float], targets: Any, base: Path, made: Maker
) -> None:
    parts = [(made(seed, target_modules=targets), weight) for seed, weight in zip((1, 2), weights, strict=True)]
    entries = [{"path": str(folder), "weight": weight} for folder, weight in parts]
    how = {"name": "svd", "rank": 8} if combine == "svd" else combine  # the sum of both ranks: nothing is lost
    found = logits(base, entries, how)
    assert torch.allclose(found, summed(base, parts), atol=1e-4)
    assert (found - logits(base)).abs().max() > 0.1


def test_rslora_keeps_its_scale_where_it_is_combined(base: Path, made: Maker) -> None:
    folder = made(1, use_rslora=True)
    assert torch.allclose(logits(base, [str(folder)], "cat"), logits(folder), atol=1e-4)


def test_linear_is_pefts_own(base: Path, made: Maker) -> None:
    theirs: Any = PeftModel.from_pretrained(loading.weights_at(base, torch.float32), made(1), adapter_name="a")
    theirs.load_adapter(made(2), adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.7, 0.3], "c", "linear")
    theirs.set_adapter("c")
    entries = [{"path": str(made(1)), "weight": 0.7}, {"path": str(made(2)), "weight": 0.3}]
    with torch.no_grad():
        assert torch.equal(logits(base, entries, "linear"), theirs(input_ids=IDS).logits)


@pytest.mark.parametrize("name", ["ties", "dare_linear_svd"])
def test_combinations_that_drop_numbers(name: str, base: Path, made: Maker) -> None:
    """Each setting acts; what is dropped at random is the same every time, whatever came before."""
    both = [str(made(1)), str(made(2))]
    first = logits(base, both, name)
    torch.manual_seed(99)
    assert torch.equal(logits(base, both, name), first)
    changes: list[dict[str, Any]] = [{"density": 0.9}]
    changes += [{"seed": 1}] if "dare" in name else []
    changes += [{"rank": 2}] if "svd" in name else []
    for change in changes:
        assert not torch.equal(logits(base, both, {"name": name, **change}), first)


def test_methods_are_mixed_in_a_stack(base: Path, made: Maker) -> None:
    """The order counts: each is merged into what lies under it."""
    lora, ia3, norms = made(1), made(2, name="ia3"), made(3, name="norm_tuning")
    prompt = made(4, name="prompt_tuning")
    stacked = logits(base, [str(lora), str(ia3), str(norms)])
    model: Any = loading.weights_at(base, torch.float32)
    with quiet_peft():
        for folder in (lora, ia3, norms):
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(stacked, model(input_ids=IDS).logits, atol=1e-4)
    assert logits(base, [str(lora), str(prompt)]).shape[1] == 20 + IDS.shape[1]  # virtual tokens may stand on top
    with pytest.raises(ModelError, match="of prompt_tuning, can't be merged"):
        logits(base, [str(prompt), str(lora)])


def test_norms_keep_what_they_learnt_on_a_16_bit_base(base: Path, made: Maker) -> None:
    """In use and trained further; merged into such a base they are rounded to it."""
    folder, norms = made(3, name="norm_tuning"), METHODS.load("norm_tuning")
    saved = load_file(folder / "adapter_model.safetensors")
    assert any(not torch.equal(value, value.bfloat16().float()) for value in saved.values())
    used = loading.load(loading.find(ModelConfig(name=str(folder))), torch.bfloat16)
    method = norms.build(norms.Options())
    further = method.apply(loading.weights_at(base, torch.bfloat16), Apply(seed=0, base_name=str(base), adapter=folder))
    for model in (used, further):
        found = get_peft_model_state_dict(model)
        assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    with torch.no_grad():
        assert torch.equal(used.eval()(input_ids=IDS).logits, further.eval()(input_ids=IDS).logits)
    stacked = ModelConfig.model_validate({"name": str(base), "adapters": [str(folder), str(made(1))]})
    stack = loading.load(loading.find(stacked), torch.bfloat16).eval()
    assert {value.dtype for name, value in stack.named_parameters() if "lora" not in name} == {torch.bfloat16}
    with torch.no_grad():
        assert stack(input_ids=IDS).logits.dtype == torch.bfloat16


def test_the_model_may_be_an_adapter_itself(base: Path, made: Maker) -> None:
    assert torch.equal(logits(made(1), [str(made(2))]), logits(base, [str(made(1)), str(made(2))]))


def test_majority_sign_method_acts(base: Path, made: Maker) -> None:
    entries = [{"path": str(made(seed)), "weight": weight} for seed, weight in ((1, 3), (2, 0.5), (3, 0.5))]
    found = [logits(base, entries, {"name": "ties", "majority_sign_method": how}) for how in ("total", "frequency")]
    assert not torch.equal(*found)


# --- everywhere -------------------------------------------------------------------------------------------------------


def test_exported_as_one_adapter_and_merged(base: Path, made: Maker, tmp_path: Path) -> None:
    given = {"adapters": [f"{made(1)}=0.7", f"{made(2)}=0.3"], "combine": "cat"}
    assert export(str(base), tmp_path / "one", format="adapter", **given).largest_logit_difference < 1e-5
    expected = summed(base, [(made(1), 0.7), (made(2), 0.3)])
    plain: Any = PeftModel.from_pretrained(loading.weights_at(base, torch.float32), tmp_path / "one")
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=IDS).logits, expected, atol=1e-4)
    assert plain.peft_config["default"].base_model_name_or_path == str(base)
    assert export(str(base), tmp_path / "merged", **given).largest_logit_difference < 1e-4
    assert torch.allclose(logits(tmp_path / "merged"), expected, atol=1e-4)
    with pytest.raises(ModelError, match="stacked or weighted are no single adapter"):
        export(str(base), tmp_path / "none", format="adapter", adapters=[str(made(1)), str(made(2))])


def test_on_the_command_line(base: Path, made: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--adapter", f"{made(1)}=0.5", "--adapter", str(made(2)), "--combine", "cat", "--json"]
    assert main(["export", str(base), str(tmp_path / "out"), "--format", "adapter", *flags]) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 8
    assert main(["chat", str(base), "--prompt", "your name", "--max-new-tokens", "4", *flags]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])["answer"]
    alone = chat(str(tmp_path / "out"), prompt="your name", max_new_tokens=4)
    assert alone is not None
    assert alone.answer == answer


def test_talked_to_beside_the_base(base: Path, made: Maker) -> None:
    given: dict[str, Any] = {"prompt": "what is your name", "max_new_tokens": 6}
    alone = chat(str(base), **given)
    for combine in ("stack", "cat"):
        both = chat(str(base), compare_base=True, adapters=[str(made(1)), str(made(2))], combine=combine, **given)
        assert both is not None
        assert alone is not None
        assert both.base_answer == alone.answer
        assert both.answer != alone.answer


@pytest.mark.parametrize(
    ("adapters", "combine", "said"), [(["a=0"], "stack", "weight of 0"), (["a"], "sum", "Input should be 'stack'")]
)
def test_flags_that_can_not_be_used(adapters: list[str], combine: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chat("smollm2-135m", prompt="x", adapters=adapters, combine=combine)


def test_trained_on_several_stopped_and_gone_on_with(base: Path, made: Maker, tmp_path: Path) -> None:
    """The new adapter stands on the merged ones, which are kept beside it."""
    config = config_for(base, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", max_steps=4, save_steps=2)
    config["model"] = {"name": str(base), "adapters": [str(made(1)), str(made(2))]}
    assert plan(config).trainable_parameters == plan({**config, "model": str(base)}).trainable_parameters
    luthier.train(config)
    run = tmp_path / "run"
    assert torch.allclose(logits(run / "base"), summed(base, [(made(1), 1), (made(2), 1)]), atol=1e-4)
    final = (run / "final" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    luthier.train(config, resume=True)
    assert (run / "final" / "adapter_model.safetensors").read_bytes() == final
    # the new adapter was made on top of the two, so it may be stacked on them
    stacked = logits(base, [str(made(1)), str(made(2)), str(run)])
    assert torch.allclose(stacked, logits(run), atol=1e-4)
    config["model"]["adapters"].reverse()
    with pytest.raises(UserError, match="model's files are not those"):
        luthier.train(config, resume=True)


# --- trained further --------------------------------------------------------------------------------------------------

ADAPTERS = [
    name for name in METHODS.names() if METHODS.load(name).build(METHODS.load(name).Options()).saves == "adapter"
]


def continuing(name: str, base: Path, adapter: Path, out: Path, **method: Any) -> dict[str, Any]:
    rows = write_rows(out.parent / "rows.jsonl")
    config = config_for(base, rows, out, max_steps=2, save_steps=1, logging_steps=1, learning_rate=1e-3)
    model = {"name": str(base), "adapters": [str(adapter)], "continue_adapter": True}
    return {**config, "model": model, "method": {"name": name, **method}}


SIZES: dict[str, dict[str, Any]] = {"vera": {"rank": 16}, "oft": {"block_size": 8}, "lora": {"use_rslora": True}}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_goes_on_from_where_it_was(
    name: str, finished: bool, base: Path, made: Maker, tmp_path: Path
) -> None:
    """Put on fresh, it says what it said, and what it was made of learns; a finished one as well as a checkpoint."""
    folder = made(5, name=name, **SIZES.get(name, {}))
    if finished:
        folder = shutil.copytree(folder, tmp_path / "final")
        (folder / METHOD_STATE).unlink(missing_ok=True)
    module = METHODS.load(name)
    method = module.build(continued_options(module.Options(name=name), AdapterPart(folder)))
    how = Apply(seed=9, base_name=str(base), adapter=folder, total_steps=20)
    if finished and name == "p_tuning":
        with pytest.raises(ModelError, match="saved without the network that made its vectors"):
            method.apply(loading.weights_at(base, torch.float32), how)
        return
    model = method.apply(loading.weights_at(base, torch.float32), how)
    with torch.no_grad():
        assert torch.allclose(model.eval()(input_ids=IDS).logits, logits(folder), atol=2e-5)
    fresh = module.build(method.options).apply(loading.weights_at(base, torch.float32), Apply(seed=9))
    learns = [{n for n, p in made.named_parameters() if p.requires_grad} for made in (model, fresh)]
    assert learns[0] == learns[1]


@pytest.mark.parametrize("name", ["lora", pytest.param("unipelt", marks=pytest.mark.slow)])
def test_trained_further_stopped_and_gone_on_with(name: str, base: Path, made: Maker, tmp_path: Path) -> None:
    folder = made(5, name=name, **SIZES.get(name, {}))
    luthier.train(continuing(name, base, folder, tmp_path / "run"))
    run, final = tmp_path / "run", tmp_path / "run" / "final"
    assert json.loads((final / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert not (run / "base").exists()
    assert not torch.allclose(logits(final), logits(folder), atol=1e-4)
    before = (final / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(final)
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    luthier.train(continuing(name, base, folder, tmp_path / "run"), resume=True)
    assert (final / "adapter_model.safetensors").read_bytes() == before


def test_what_it_was_made_with_is_what_it_keeps(base: Path, made: Maker, tmp_path: Path) -> None:
    folder = made(6, alpha=8, target_modules=["q_proj", "v_proj"])
    config = continuing("lora", base, folder, tmp_path / "run", dropout=0.1)
    counted = plan(config)
    assert counted.trainable_parameters == 3 * 4 * ((32 + 32) + (32 + 16))
    luthier.train(config)
    saved = json.loads((tmp_path / "run" / "final" / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], sorted(saved["target_modules"])) == (4, 8, ["q_proj", "v_proj"])
    assert saved["lora_dropout"] == 0.1
    resolved = (tmp_path / "run" / "config.yaml").read_text()
    assert "rank: 4" in resolved
    assert "alpha: 8" in resolved


def test_the_last_of_a_stack_goes_on(base: Path, made: Maker, tmp_path: Path) -> None:
    config = continuing("lora", base, made(2), tmp_path / "run")
    config["model"]["adapters"] = [str(made(1)), str(made(2))]
    config["training"]["learning_rate"] = 1e-30
    luthier.train(config)
    assert torch.allclose(logits(tmp_path / "run" / "base"), summed(base, [(made(1), 1)]), atol=1e-4)
    assert torch.allclose(logits(tmp_path / "run"), summed(base, [(made(1), 1), (made(2), 1)]), atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tokens_that_are_new_to_it_learn_beside_its_own(kind: str, tmp_path: Path) -> None:
    """A template's new tokens, once on an adapter that trained no rows, once on one that did: what it said it says still,
    and rows of the embedding (and of the head where it is not tied) learn and are kept, those it had too."""
    names = ["embed_tokens"] if kind == "qwen2" else ["embed_tokens", "lm_head"]
    method, before = lora.build(lora.Options(rank=4)), None
    for turn, (new, expected) in enumerate([([], None), ([9, 5], [9, 5]), ([5, 3], [9, 5, 3])]):
        how = Apply(seed=turn, new_token_ids=new, adapter=before)
        model: Any = method.apply(tiny_model(kind), how)
        rows = [value for name, value in model.named_parameters() if "trainable_tokens_delta" in name]
        assert [len(value) for value in rows if value.requires_grad] == [len(expected or [])] * len(rows)
        assert model.peft_config["default"].trainable_token_indices == (expected and dict.fromkeys(names, expected))
        with torch.no_grad():
            if before is not None:
                plain: Any = PeftModel.from_pretrained(tiny_model(kind), before)
                assert torch.equal(model.eval()(input_ids=IDS).logits, plain(input_ids=IDS).logits)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1
        before = tmp_path / str(turn)
        method.save(model, before)
    saved = PeftModel.from_pretrained(tiny_model(kind), before)
    with torch.no_grad():
        assert torch.equal(saved(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("name", "adapter", "method", "said"),
    [
        ("lora", {}, {"rank": 8}, "method.rank is 8, but the adapter has 4"),
        ("lora", {}, {"init": "pissa"}, "method.init is 'pissa', which has no effect"),
        ("ia3", {}, {}, "is an adapter of method lora, and method is ia3"),
        ("full", {}, {}, "is an adapter of method lora, and method is full"),
        (
            "adapter",
            {"name": "adapter"},
            {"placement": "houlsby"},
            "placement is 'houlsby', but the adapter has 'pfeiffer'",
        ),
    ],
)
def test_settings_that_contradict_it(
    name: str, adapter: dict[str, Any], method: dict[str, Any], said: str, base: Path, made: Maker, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        plan(continuing(name, base, made(1, **adapter), tmp_path / "run", **method))


@pytest.mark.parametrize(("name", "options"), [("mam", {"projection": True}), ("prefix_tuning", {"projection": True})])
def test_a_finished_prompt_without_its_network_can_not_go_on(
    name: str, options: dict[str, Any], base: Path, made: Maker, tmp_path: Path
) -> None:
    folder = shutil.copytree(made(7, name=name, **options), tmp_path / "final")
    (folder / METHOD_STATE).unlink()
    with pytest.raises(ModelError, match="saved without the network that made its vectors"):
        luthier.train(continuing(name, base, folder, tmp_path / "run"))


# --- of other tools ---------------------------------------------------------------------------------------------------


def of_peft(base: Path, folder: Path, rows: int = 0, **settings: Any) -> Tensor:
    """Writes an adapter with its embedding, as plain peft does, on a model whose vocabulary was given `rows`; its logits."""
    model: Any = loading.weights_at(base, torch.float32)
    if rows:
        torch.manual_seed(3)
        model.resize_token_embeddings(rows)
    tuned: Any = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM", **settings))
    tuned.base_model.model.name_or_path = tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder, save_embedding_layers=True)
    with torch.no_grad():
        found: Tensor = tuned.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    ("how", "kind"),
    [(how, "llama") for how in ("targets", "more rows", "fewer rows", "rows that learn")] + [("more rows", "qwen2")],
)
def test_one_of_another_tool_holds_the_embedding(how: str, kind: str, tmp_path: Path) -> None:
    """Beside an update of it, and where the vocabulary was resized: to a multiple of 64, or down to the tokenizer's size."""
    own = len(tiny_tokenizer())
    base = tiny_folder(tmp_path / "base", kind)
    tiny_model(kind, vocab_size=own + 8).save_pretrained(base)
    ends = ["embed_tokens", "lm_head"]
    settings: dict[str, Any] = {"target_modules": ["q_proj", *(ends if how == "targets" else [])]}
    if how == "rows that learn":
        settings["modules_to_save"] = ends
    rows = {"targets": 0, "fewer rows": own + 1}.get(how, own + 72)
    expected = of_peft(base, tmp_path / "adapter", rows, **settings)
    assert torch.equal(logits(tmp_path / "adapter"), expected)
    export(str(tmp_path / "adapter"), tmp_path / "merged")
    assert torch.allclose(logits(tmp_path / "merged"), expected, atol=1e-4)


def test_those_with_an_embedding_are_combined(base: Path, tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        of_peft(base, tmp_path / name, 316 if name == "other" else 320, target_modules=["q_proj"])
    given = {"adapters": [str(tmp_path / "one"), str(tmp_path / "two")], "combine": "cat"}
    assert export(str(base), tmp_path / "both", format="adapter", **given).largest_logit_difference < 1e-5
    assert torch.allclose(logits(tmp_path / "both"), logits(base, given["adapters"], "cat"), atol=1e-5)
    with pytest.raises(ModelError, match=r"one vocabulary.*one: 320, .*other: 316"):
        logits(base, [str(tmp_path / "one"), str(tmp_path / "other")], "cat")
    stacked = logits(base, [str(tmp_path / "one"), str(tmp_path / "other")])
    assert stacked.shape[-1] == 316


def test_one_with_more_rows_is_trained_on_and_not_further(base: Path, tmp_path: Path) -> None:
    """Merged, its rows stay; gone on with, they would be lost, and that is said before weights are read."""
    expected = of_peft(base, tmp_path / "adapter", 320, target_modules=["q_proj"])
    config = continuing("lora", base, tmp_path / "adapter", tmp_path / "run")
    with pytest.raises(ModelError, match="holds an embedding of 320 rows beside its update; its base has"):
        luthier.train(config)
    config["model"]["continue_adapter"] = False
    config["training"]["learning_rate"] = 1e-30
    luthier.train(config)
    assert torch.allclose(logits(tmp_path / "run"), expected, atol=1e-4)


# --- those that do not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lora", "adalora", "vera", "oft", "ia3", "norm_tuning", "adapter", "mam", "unipelt", "prefix_tuning"]
)
@pytest.mark.parametrize(
    "on", [{"num_hidden_layers": 4}, {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}]
)
def test_another_shape_is_refused_before_weights_are_read(
    name: str, on: dict[str, int], base: Path, made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(1, on, name=name)
    monkeypatch.setattr(loading, "weights_at", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match="is made for another model"):
        logits(base, [str(folder)])


def test_another_family_is_refused(base: Path, made: Maker, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "gpt2", "gpt2")
    folder = shutil.copytree(made(1), tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match="made for another model: Target modules"):
        logits(other, [str(folder)])


def test_another_base_of_the_same_shape_is_refused(base: Path, made: Maker, tmp_path: Path) -> None:
    """By the fingerprint of the base it names, by the one its run noted, and by the id on a hub."""
    other = tiny_folder(tmp_path / "other", rms_norm_eps=1e-5)
    with pytest.raises(ModelError, match="was made for another base"):
        logits(other, [str(made(1))])
    folder = shutil.copytree(made(1), tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())

    def naming(name: str) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": name}))

    for name in ("gone/away", ""):
        naming(name)
        logits(other, [str(folder)])  # nothing says that it was not
    naming("gone/away")
    (folder / "manifest.json").write_text(json.dumps({"fingerprints": {"model": "content:abc"}}))
    with pytest.raises(ModelError, match="was made for another base: gone/away"):
        logits(other, [str(folder)])


def test_what_is_no_adapter_or_can_not_be_put_together(base: Path, made: Maker, tmp_path: Path) -> None:
    first, dora, ia3 = str(made(1)), str(made(1, use_dora=True)), str(made(2, name="ia3"))
    rows = shutil.copytree(first, tmp_path / "rows")  # as a run leaves it whose template had new tokens
    settings = json.loads((rows / "adapter_config.json").read_text())
    (rows / "adapter_config.json").write_text(
        json.dumps({**settings, "trainable_token_indices": {"embed_tokens": [299], "lm_head": [299]}})
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"adapters": [str(base)]}, "is a whole model, no adapter"),
        ({"continue_adapter": True}, "continue_adapter is set, but"),
        ({"combine": "cat"}, "combine is set, but"),
        ({"adapters": [first, ia3], "combine": "svd"}, "needs LoRA, and .* is an adapter of ia3"),
        ({"adapters": [{"path": ia3, "weight": 0.5}]}, "a weight of 0.5 needs LoRA"),
        ({"adapters": [{"path": dora, "weight": 0.5}]}, "its use_dora is True"),
        ({"adapters": [first, str(rows)], "combine": "cat"}, "its trainable_token_indices is {'embed_tokens': .299"),
        ({"adapters": [{"path": str(rows), "weight": 0.5}]}, "its trainable_token_indices is"),
        ({"adapters": [first, first], "combine": "cat", "continue_adapter": True}, "this one is combined"),
        (
            {"adapters": first, "combine": {"name": "svd", "rank": 2}},
            "svd makes one adapter of several, and .* only one",
        ),
        ({"adapters": first, "combine": "ties"}, "ties makes one adapter of several, and .* only one"),
        (
            {"adapters": [first, first], "combine": {"name": "svd", "rank": 17}},
            "rank 17, and the narrowest .* is 16 wide",
        ),
    ]
    for choice, said in cases:
        with pytest.raises(ModelError, match=said):
            loading.find(ModelConfig.model_validate({"name": str(base), **choice}))
    with pytest.raises(ModelError, match="same r value"):
        logits(base, [first, str(made(1, rank=2))], "linear")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two adapters of rank 4 but for two layers, as init: eva makes them."""
    folders = []
    for seed, ranks in enumerate([(7, 2), (5, 7)]):
        pattern = {f"model.layers.{layer}.self_attn.q_proj": rank for layer, rank in enumerate(ranks)}
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            rank_pattern=pattern,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
        )
        torch.manual_seed(seed)
        folders.append(str(tmp_path_factory.mktemp("uneven")))
        get_peft_model(tiny_model("llama", vocab_size=len(tiny_tokenizer())), config).save_pretrained(folders[-1])
    return folders


@pytest.mark.parametrize("combine", ["cat", {"name": "svd", "rank": 14}])
def test_ranks_that_differ_among_layers_are_combined(combine: Any, base: Path, uneven: list[str]) -> None:
    entries = [{"path": folder, "weight": weight} for folder, weight in zip(uneven, (0.7, 0.3), strict=True)]
    assert torch.allclose(logits(base, entries, combine), logits(base, entries), atol=1e-4)


def test_ranks_that_differ_among_layers_can_not_be_added(base: Path, uneven: list[str]) -> None:
    """Nor can one alone be taken over, by any name: what is written could not be read."""
    cases = [(uneven, "linear", "linear adds factors of one rank"), (uneven, "ties", "ties adds factors of one rank")]
    cases += [(uneven[:1], name, "2 to 7 .* alone it can't be combined") for name in ("cat", "linear")]
    for adapters, combine, said in cases:
        with pytest.raises(ModelError, match=said):
            loading.find(ModelConfig.model_validate({"name": str(base), "adapters": adapters, "combine": combine}))


@pytest.mark.parametrize(
    "combine", [{"name": "cat", "density": 0.5}, {"name": "linear", "rank": 4}, {"name": "svd", "seed": 1}]
)
def test_a_setting_of_another_combination_is_refused(combine: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect with"):
        ModelConfig.model_validate({"name": "base", "adapters": ["a"], "combine": combine})
