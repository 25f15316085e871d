"""Sources of every kind, the table's completeness, and the verb."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import Field
from transformers import Seq2SeqTrainingArguments

from luthier import cli
from luthier.config.chat_templates import template_names
from luthier.config.loading import all_keys, load, validate
from luthier.config.migration import asking
from luthier.config.migration.command_lines import parse, split
from luthier.config.migration.migrating import Migration, migrate
from luthier.config.migration.rules import RULES
from luthier.config.migration.sources import Source, from_file, from_words
from luthier.config.migration.table import is_llama_factory, luthiers_name, table
from luthier.config.sections import PluginOptions
from luthier.foundation.errors import UserError

VERBS = {
    "train": frozenset(),
    "chat": frozenset({"--temperature"}),
    "export": frozenset({"--max-shard-size", "--dtype"}),
}
BASE = {"model_name_or_path": "maker/m", "do_train": True, "dataset": "identity", "output_dir": "out"}


def of(**keys: Any) -> Migration:
    return migrate(Source("a test", {**BASE, **keys}), VERBS)


def of_line(text: str) -> Migration:
    return migrate(from_words(split(text)), VERBS)


def config(found: Migration) -> dict[str, Any]:
    assert found.config is not None, found.problems
    return found.config


def note(found: Migration, key: str) -> str:
    return next(f"{outcome.status}: {outcome.note}" for outcome in found.outcomes if outcome.key == key)


# the table


def test_every_argument_of_transformers_trainer_has_a_row() -> None:
    assert {item.name for item in dataclasses.fields(Seq2SeqTrainingArguments)} <= set(table().keys)


def test_rows_hang_together() -> None:
    keys = table().keys
    for name, row in keys.items():
        if row.alias_of is not None:
            assert keys[row.alias_of].alias_of is None, f"{name} is a name of a name"
            continue
        said = [row.to, row.rule, row.option, row.never, None if row.always is None else "always"]
        assert any(said), f"{name} says nothing"
        assert row.rule is None or row.rule in RULES, name
        assert set(row.needs) <= set(keys), name
        if isinstance(row.takes, tuple) and isinstance(row.default, str) and row.default != "(absent)":
            assert row.default in row.takes, name


def test_rules_are_used() -> None:
    assert {row.rule for row in table().keys.values() if row.rule} == set(RULES)


def test_templates_are_luthiers() -> None:
    assert {found.name for found in table().templates.values()} <= set(template_names())


def test_an_error_message_names_keys_that_exist() -> None:
    known = all_keys()
    for key, row in table().keys.items():
        named = luthiers_name(key, known)
        if named is None or row.alias_of:
            continue
        first = named.split(" ")[0].rstrip(":")
        real = first in known or first.rpartition(".")[0] in known
        assert real or first in ("nothing", "the", "for", "method", "stage") or row.says, f"{key} -> {named}"


# what becomes of values


@pytest.mark.parametrize("value", ["1e-4", 1e-4, "0.0001"])
def test_numbers_may_be_text(value: Any) -> None:
    assert config(of(learning_rate=value))["training"]["learning_rate"] == 1e-4


def test_defaults_of_llama_factory_are_written_where_luthiers_are_others() -> None:
    found = of(lora_rank=32)
    assert found.added["method.alpha"] == 64
    assert found.added["training.learning_rate"] == 5e-5
    assert found.added["data.cutoff_length"] == 2048
    assert "training.seed" not in found.added
    assert config(found)["method"]["alpha"] == 64


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"use_kt": True, "kt_optimize_rule": "amx.yaml", "cpu_infer": 16, "chunk_size": 4096}, "does not use KTransformers"),
        ({"use_megatron_bridge": True, "tensor_model_parallel_size": 2, "recompute_method": "block"}, "does not use Megatron"),
        ({"extra_config": "{}", "moe_token_dispatcher_type": "flex", "overlap_grad_reduce": False}, "does not use Megatron"),
        ({"fsdp_min_num_params": 100, "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}, "how layers are wrapped"),
        ({"torchdynamo": "inductor"}, "does not compile"),
        ({"tpu_metrics_debug": True}, "does not run on TPUs"),
        ({"past_index": 2}, "carries no states"),
        ({"mp_parameters": "ddp"}, "SageMaker"),
    ],
)  # fmt: skip
def test_what_luthier_has_no_use_for_is_refused_and_the_rest_is_written(given: dict[str, Any], said: str) -> None:
    found = of(**given, lora_target="all")
    assert config(found)
    assert all(note(found, key).startswith("refused") and said in note(found, key) for key in given)


def test_a_key_of_an_engine_that_is_not_asked_for_has_no_effect() -> None:
    assert note(of(chunk_size=1, mode="long_context"), "mode") == "mapped: without effect, as there: use_kt is false"


def test_modules_beside_rotations_are_refused() -> None:
    """OFT takes them there, and luthier's trains no modules whole."""
    found = of(finetuning_type="oft", additional_target="lm_head")
    assert note(found, "additional_target").startswith("refused: luthier's method oft has no modules_to_save")
    assert "modules_to_save" in config(of(additional_target="lm_head", lora_target="all"))["method"]


@pytest.mark.parametrize(
    "given",
    [
        {"stage": "dpo", "pref_loss": "ipo"},
        {"stage": "dpo", "dpo_loss": "kto_pair"},
        {"stage": "dpo", "pref_loss": "hinge"},
        {"stage": "dpo", "ref_model": "maker/other"},
        {"use_dft_loss": True},
    ],
)
def test_a_config_of_another_objective_is_not_written(given: dict[str, Any]) -> None:
    found = of(**given, lora_target="all")
    (key,) = given.keys() - {"stage"}
    assert found.config is None
    assert [problem.partition(":")[0] for problem in found.problems] == [key]


def test_keys_without_effect_there_stay_without_effect() -> None:
    found = of(finetuning_type="full", lora_rank=64, pref_beta=0.5)
    assert config(found)["method"] == "full"
    assert note(found, "lora_rank") == "mapped: without effect, as there: finetuning_type is full"
    assert note(found, "pref_beta") == "mapped: without effect, as there: stage is sft"


def test_rows_that_are_never_evaluated_on_are_the_test_set() -> None:
    assert config(of(val_size=0.1))["data"]["test"] == 0.1
    assert config(of(val_size=50, eval_strategy="epoch"))["data"]["validation"] == 50


def test_a_number_that_luthier_does_not_take_is_no_default() -> None:
    found = of(per_device_train_batch_size=0, neftune_noise_alpha=0, num_mtp_layers=0)
    assert note(found, "per_device_train_batch_size").startswith(
        "refused: training.per_device_train_batch_size: must be"
    )
    assert not [outcome for outcome in found.having("refused") if outcome.key != "per_device_train_batch_size"]


def test_an_engine_that_luthier_does_not_have() -> None:
    keys = {
        "model_name_or_path": "m",
        "do_predict": True,
        "eval_dataset": "a",
        "output_dir": "o",
        "infer_backend": "sglang",
    }
    found = migrate(Source("a test", keys), {"predict": frozenset({"--engine"})})
    assert note(found, "infer_backend") == "refused: --engine of `luthier predict` takes transformers, vllm"
    assert "sglang" not in found.command


def test_old_names_mean_the_same() -> None:
    old = of(finetuning_type="freeze", num_layer_trainable=4, evaluation_strategy="no", per_gpu_train_batch_size=3)
    new = of(finetuning_type="freeze", freeze_trainable_layers=4, eval_strategy="no", per_device_train_batch_size=3)
    assert config(old) == config(new)


def test_that_old_version_needs_its_modules_named() -> None:
    assert of(max_source_length=512, max_target_length=128).problems == ("lora_target is missing",)
    assert (
        config(of(max_source_length=512, max_target_length=128, lora_target="q_proj"))["data"]["cutoff_length"] == 640
    )


def test_an_old_name_that_contradicts_the_new_is_wrong() -> None:
    found = of(eval_strategy="no", evaluation_strategy="steps")
    assert found.problems == ("evaluation_strategy: it is an older name of eval_strategy, which is 'no' here",)


def test_modules_of_some_layers_are_named_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 6}')
    keys = {"finetuning_type": "freeze", "freeze_trainable_layers": 2, "freeze_trainable_modules": "mlp"}
    named = config(of(**keys, model_name_or_path=str(tmp_path)))["method"]
    assert named == {"name": "freeze", "trainable_layers": 0, "trainable_modules": ["layers.4.mlp", "layers.5.mlp"]}
    assert note(of(**keys), "freeze_trainable_modules").startswith("refused: mlp of the last 2 layers")


def test_the_whole_config_is_checked() -> None:
    found = of(eval_strategy="steps")
    assert found.config is None
    assert "data.validation is unset" in found.problems[0]


def test_a_token_is_not_shown() -> None:
    found = of(hf_hub_token="hf_secret", swanlab_api_key="key-secret")
    assert "secret" not in json.dumps([outcome.as_dict() for outcome in found.outcomes]) + yaml.safe_dump(found.config)


def test_two_keys_that_write_the_same_are_told() -> None:
    found = of(run_name="a", swanlab_run_name="b", use_swanlab=True)
    assert note(found, "swanlab_run_name") == "refused: another key has set training.run_name to a"


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_none(value: str) -> None:
    assert "takes a number" in of(learning_rate=yaml.safe_load(value)).problems[0]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"val_size": 0.1, "eval_dataset": "b"}, "val_size: it can't stand beside eval_dataset"),
        ({"train_on_prompt": True, "mask_history": "true"}, "mask_history: it can't stand beside train_on_prompt"),
        ({"streaming": True, "max_samples": 10, "max_steps": 5}, "max_samples: it can't stand beside streaming"),
        ({"bf16": True, "fp16": True}, "fp16: it can't stand beside bf16"),
        ({"use_galore": True, "use_badam": True}, "use_badam: it can't stand beside use_galore"),
    ],
)
def test_what_llama_factory_does_not_take_together(keys: dict[str, Any], problem: str) -> None:
    assert of(**keys).problems == (f"{problem}: remove one of the two",)


def test_what_is_false_stands_beside_everything() -> None:
    assert config(of(val_size=0, eval_dataset="b", bf16=True, fp16=False))["training"]["bf16"] is True


def test_a_registry_on_a_hub_is_the_only_problem() -> None:
    assert of(dataset_dir="REMOTE:maker/sets").problems == (
        "dataset: dataset_dir REMOTE:maker/sets is a registry on a hub: download it, and name its folder",
    )
    assert of(dataset={"a": 1}).problems == ("dataset: is {'a': 1}: takes names",)


def test_adams_decays_go_where_they_act() -> None:
    assert config(of(adam_beta2=0.95))["training"]["adam_beta2"] == 0.95
    assert config(of(optim="lion_32bit", adam_beta2=0.95))["training"]["optim"] == {"name": "lion", "beta2": 0.95}
    without = of(optim="sgd", adam_beta2=0.95)
    assert config(without)["training"]["optim"] == "sgd"
    assert note(without, "adam_beta2") == "mapped: without effect, as there: the optimizer is sgd"


def test_the_first_of_several_optimizers_is_taken() -> None:
    found = of(use_muon=True, use_badam=True, finetuning_type="full")
    assert config(found)["training"]["optim"]["name"] == "badam"
    assert note(found, "use_muon") == "mapped: without effect, as there: use_badam goes before it"


@pytest.mark.parametrize("value", [{"min_lr": 1e-6}, '{"min_lr": 1e-6}'])
def test_a_schedules_settings(value: Any) -> None:
    found = of(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=value)
    assert config(found)["training"]["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    other = of(lr_scheduler_type="greedy", lr_scheduler_kwargs=value)
    assert note(other, "lr_scheduler_kwargs").startswith("refused: they are settings of the schedule greedy")
    assert "lr_scheduler_kwargs" not in config(other)["training"]
    assert "takes a mapping, or JSON text of one" in of(lr_scheduler_kwargs="{min_lr").problems[0]


# what luthier does not have yet


class FakeRegistry:
    """A registry as it is once a stage is there."""

    kind = "training stage"

    class Options(PluginOptions):
        name: str = "dpo"
        beta: float = Field(0.1, gt=0)

    def names(self) -> list[str]:
        return ["dpo", "sft"]

    def load(self, name: str) -> Any:
        return types.SimpleNamespace(Options=self.Options)


def test_a_stage_that_comes_later_makes_its_keys_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"stage": "dpo", "pref_beta": 0.3, "dpo_label_smoothing": 0.1}
    today = of(**keys)
    if "dpo" not in asking.CHOICES["stage"][0].names():
        assert today.problems == (f"stage: {note(today, 'stage').removeprefix('refused: ')}",)
        assert note(today, "stage").startswith("refused: luthier can't train stage dpo yet, only ")
    monkeypatch.setitem(asking.CHOICES, "stage", (FakeRegistry(), "luthier can't train stage {name} yet, only {known}"))
    monkeypatch.setattr("luthier.config.migration.migrating._problems_of", lambda config: [])
    later = of(**keys)
    assert config(later)["stage"] == {"name": "dpo", "beta": 0.3}
    assert (
        note(later, "dpo_label_smoothing") == "refused: luthier's training stage dpo has no label_smoothing, only beta"
    )
    assert note(of(**{**keys, "pref_beta": -1}), "pref_beta") == "refused: stage.beta: must be greater than 0, found -1"


def test_what_an_optimizer_of_another_name_does_otherwise() -> None:
    paged = of(optim="paged_adamw_8bit")
    assert config(paged)["training"]["optim"] == {"name": "adamw8bit", "paged": True}
    assert note(paged, "optim").startswith("mapped: only CUDA pages")
    for name, ours, words in (
        ("paged_adamw_32bit", "adamw", "not paged out"),
        ("lion_8bit", {"name": "lion", "beta2": 0.999}, "in float32"),  # there it takes Adam's decays
        ("galore_adamw_layerwise", "galore", "after the whole backward pass"),
    ):
        found = of(optim=name)
        assert note(found, "optim").startswith("changed: ") and words in note(found, "optim")
        assert config(found)["training"].get("optim", "adamw") == ours


def test_the_best_is_a_moment_to_save_and_none_to_evaluate() -> None:
    assert of(eval_strategy="best", val_size=0.1).problems == ("eval_strategy: is 'best': it takes no, steps, epoch",)
    words = note(of(save_strategy="best"), "save_strategy")
    assert words.startswith("refused: ") and words.endswith("training.load_best_model_at_end, which keeps the best")


def test_values_are_asked_of_the_schema() -> None:
    found = of(lr_scheduler_type="greedy", mix_strategy="interleave_once", dataset="a,b", optim="lion_32bit_x")
    assert "must be 'linear'" in note(found, "lr_scheduler_type")
    assert "interleave_under" in note(found, "mix_strategy")
    assert note(found, "optim").startswith("refused: luthier has no optimizer lion_32bit_x yet")
    assert config(found)["data"].get("mix") is None


# how answers are generated


def test_generation_is_for_evaluations_that_generate() -> None:
    keys = {"val_size": 0.2, "temperature": 0.5, "generation_num_beams": 2}
    assert "generation" not in config(of(**keys))
    assert note(of(**keys), "temperature") == "mapped: without effect, as there: predict_with_generate is false"
    asked = {**keys, "predict_with_generate": True}
    assert config(of(**asked))["generation"]["temperature"] == 0.5
    assert note(of(**asked), "generation_num_beams") == "mapped: without effect, as there: eval_strategy is no"
    # a setting that needs one that does not act does not act either
    assert note(of(**asked, stage="pt"), "temperature") == "mapped: without effect, as there: stage is pt"


def test_two_numbers_of_beams_are_told() -> None:
    keys = {"val_size": 0.2, "eval_strategy": "epoch", "predict_with_generate": True, "generation_num_beams": 2}
    assert config(of(**keys, num_beams=1))["generation"]["num_beams"] == 2
    assert note(of(**keys, num_beams=3), "num_beams") == "refused: another key has set generation.num_beams to 2"


def test_a_chat_gets_llama_factorys_defaults_as_far_as_it_has_options() -> None:
    found = migrate(Source("a test", {"model_name_or_path": "m", "repetition_penalty": 1.3}), VERBS)
    assert found.command == "luthier chat m --temperature 0.95"
    assert found.added == {"--temperature": "0.95"}
    assert note(found, "repetition_penalty") == "refused: `luthier chat` has no --repetition-penalty"


def test_predict_has_an_option_for_every_setting_of_the_generation() -> None:
    group: Any = typer.main.get_command(cli.app)
    options = {option for parameter in group.commands["predict"].params for option in parameter.opts}
    named = {row.to.removeprefix("generation.") for row in table().keys.values() if row.rule == "generating" and row.to}
    assert {f"--{name.replace('_', '-')}" for name in named - {"do_sample"}} <= options


# command lines


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("llamafactory-cli train --bf16", "bf16", True),
        ("llamafactory-cli train --bf16 True --fp16 False", "fp16", "False"),
        ("llamafactory-cli train --no_use_fast_tokenizer", "use_fast_tokenizer", "false"),
        ("llamafactory-cli train --learning_rate=1e-4", "learning_rate", "1e-4"),
        ("llamafactory-cli train --learning-rate 1e-4", "learning_rate", "1e-4"),
        ("llamafactory-cli train --report_to wandb tensorboard --bf16", "report_to", ["wandb", "tensorboard"]),
        ("python -m llamafactory.cli train --bf16", "bf16", True),
        ("torchrun --nproc_per_node 2 src/llamafactory/launcher.py --stage sft", "stage", "sft"),
        ("torchrun -m llamafactory.launcher --bf16", "bf16", True),
        ("python -m dbgpt_hub_sql.train.rm_train --bf16", "stage", "rm"),
        ("python -m torch.distributed.run --nproc_per_node 2 src/train.py --stage sft", "stage", "sft"),
        ("accelerate launch --config_file f.yaml src/train.py --max_steps -1", "max_steps", "-1"),
        ("python src/train_rm.py --do_train", "stage", "rm"),
        ("--model_name_or_path m --do_train", "model_name_or_path", "m"),
        ("python src/train.py \\\n  --stage sft \\\n  --do_train  # the first run", "do_train", True),
        ("python src/train.py --stage sft > log.txt 2>&1 && echo done", "stage", "sft"),
    ],
)
def test_a_command_line_is_taken_apart(text: str, key: str, value: Any) -> None:
    found = parse(split(text))
    assert found.settings[key] == value
    assert not {"echo", "first"} & set(found.settings)


def test_a_launcher_becomes_processes() -> None:
    line = "CUDA_VISIBLE_DEVICES=0,1 deepspeed --num_gpus 2 src/train.py --model_name_or_path m --do_train --dataset a"
    assert of_line(line).command == "CUDA_VISIBLE_DEVICES=0,1 luthier train CONFIG --nproc-per-node 2"
    line = "FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 MASTER_ADDR=h NPROC_PER_NODE=8 llamafactory-cli train --model_name_or_path m "
    assert of_line(f"{line} --do_train --dataset a").command == (
        "torchrun --nnodes 2 --node-rank 0 --master-addr h --nproc-per-node 8 -m luthier.cli train CONFIG"
    )


@pytest.mark.parametrize(("variables", "gpus"), [("", "2,3"), ("CUDA_VISIBLE_DEVICES=0,1,2,3 ", "0,1,2,3")])
def test_gpus_that_deepspeed_includes_stand_before_the_command(variables: str, gpus: str) -> None:
    found = of_line(
        f"{variables}deepspeed --include localhost:2,3 --master_port=9901 src/train.py --model_name_or_path m --dataset a"
    )
    assert found.command == f"CUDA_VISIBLE_DEVICES={gpus} luthier train CONFIG"
    assert note(found, "deepspeed --include") == f"mapped: CUDA_VISIBLE_DEVICES={gpus} before the command"
    assert note(found, "deepspeed --master_port").startswith("mapped: on one machine")


@pytest.mark.parametrize(
    ("launcher", "command"),
    [
        ("torchrun --standalone --nproc-per-node=8", "luthier train CONFIG --nproc-per-node 8"),
        ("deepspeed --hostfile h --num_nodes 2 --num_gpus 8", "torchrun --nnodes 2 --nproc-per-node 8 -m luthier.cli train CONFIG"),
        (
            "accelerate launch --num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip h",
            "torchrun --nnodes 2 --node-rank 1 --master-addr h --nproc-per-node 8 -m luthier.cli train CONFIG",
        ),
    ],
)  # fmt: skip
def test_launchers_name_machines_in_their_own_ways(launcher: str, command: str) -> None:
    found = of_line(f"{launcher} src/train.py --model_name_or_path m --dataset a")
    assert found.command == command
    assert {outcome.key for outcome in found.having("refused")} <= {"deepspeed --hostfile"}


def test_what_the_shell_would_fill_in_is_refused_in_text() -> None:
    text = "python src/train.py --model_name_or_path $(pwd)/m --dataset a"
    with pytest.raises(UserError, match=r"--model_name_or_path is \$\(pwd\)/m, which the shell would fill in"):
        from_words([text])
    assert (
        from_words(["python", "src/train.py", "--default_system", "it costs $5"]).args["default_system"]
        == "it costs $5"
    )


ALL_OPTIONS = {
    **dict.fromkeys(("chat", "predict"), frozenset({"--adapter", "--quantization", "--template"})),
    "export": frozenset({"--adapter", "--max-shard-size"}),
    "evaluate": frozenset({"--batch-size", "--template"}),
}


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        ({"export_dir": "o", "adapter_name_or_path": "a,b"}, "export m o --adapter a --adapter b"),
        ({"adapter_name_or_path": ["a", "b"], "template": "llama3"}, "chat m --adapter a --adapter b --template llama3"),
        ({"adapter_name_or_path": "a", "quantization_bit": 4}, "chat m --adapter a --quantization nf4"),
        ({"quantization_bit": "8"}, "chat m --quantization int8"),
        (
            {"task": "mmlu_test", "n_shot": 3, "batch_size": 2, "save_dir": "saves"},
            "evaluate m --benchmark evaluation/mmlu --split test --shots 3 --batch-size 2 --out saves/results.json",
        ),
        (
            {"do_predict": True, "eval_dataset": "a", "output_dir": "o", "max_samples": 3, "default_system": "Brief: yes"},
            'predict m --data \'{"path": "data/dataset_info.json#a", "max_samples": 3, "head": true, "system": "Brief: yes"}\''
            " --out o/predictions.jsonl",
        ),
    ],
)  # fmt: skip
def test_verbs_that_do_not_train(keys: dict[str, Any], command: str) -> None:
    found = migrate(Source("a test", {"model_name_or_path": "m", **keys}), ALL_OPTIONS)
    assert found.command == f"luthier {command}"
    assert not found.having("refused")
    assert all(outcome.note or outcome.luthier for outcome in found.outcomes)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"export_dir": "o", "export_size": 5, "output_dir": "x"},
            {"export_dir": "OUT of `luthier export`", "export_size": "the option --max-shard-size", "output_dir": "nothing that `luthier export` needs"},
        ),
        ({"do_predict": True, "dataset": "a", "output_dir": "o"}, {"dataset": "the option --data", "output_dir": "the folder of --out"}),
        (
            {"do_predict": True, "dataset": "a", "eval_dataset": "b", "output_dir": "o", "export_size": 5},
            {"dataset": "the rows that were trained on", "eval_dataset": "the option --data", "export_size": "nothing that `luthier predict` needs"},
        ),
        ({"task": "mmlu_test", "dataset": "a"}, {"task": "the options --benchmark and --split", "dataset": "nothing that `luthier evaluate` needs"}),
        ({"task_dir": "there", "template": "llama3"}, {"task_dir": "nothing that `luthier chat` needs", "template": "the option --template"}),
    ],
)  # fmt: skip
def test_a_key_of_a_command_is_told_where_it_stands(keys: dict[str, Any], told: dict[str, str]) -> None:
    found = migrate(Source("a test", {"model_name_or_path": "m", **keys}), ALL_OPTIONS)
    assert {key: note(found, key) for key in told} == {key: f"mapped: {words}" for key, words in told.items()}


def test_what_needs_nothing_is_told_too() -> None:
    found = of(
        do_eval=False, export_dir=None, report_to="none", use_galore=False, flash_attn="auto", tokenized_path=None
    )
    assert not [outcome.key for outcome in found.outcomes if not outcome.note and not outcome.luthier]
    assert note(found, "report_to") == "mapped: as luthier does without it"


def test_a_merged_model_is_not_quantized() -> None:
    keys = {"model_name_or_path": "m", "adapter_name_or_path": "a", "export_dir": "o", "quantization_bit": 4}
    found = migrate(Source("a test", keys), ALL_OPTIONS)
    assert found.command == "luthier export a o"
    assert note(found, "quantization_bit") == "refused: `luthier export` reads the model as it is"


def test_settings_after_a_config_go_before_it(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump({**BASE, "learning_rate": 1e-3}))
    found = of_line(f"llamafactory-cli train {file} learning_rate=1e-5 lora_rank=4")
    assert config(found)["training"]["learning_rate"] == 1e-5
    assert config(found)["method"] == {"name": "lora", "rank": 4, "alpha": 8} or config(found)["method"]["rank"] == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("python train_my_own_model.py --lr 1", "is no command of LLaMA-Factory"),
        ("llamafactory-cli trian x.yaml", "is not followed by one of its verbs"),
        ("llamafactory-cli train --stage sft --stage pt", "--stage stands twice"),
        ("llamafactory-cli train sft", "belongs to no setting"),
        ("python src/train.py --stage 'sft", "can't be split into words"),
    ],
)
def test_a_command_line_that_is_none_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        of_line(text)


# scripts

RUN = "llamafactory-cli train --model_name_or_path m --dataset a --lora_target all --output_dir o"


def of_script(folder: Path, *lines: str) -> Migration:
    file = folder / "run.sh"
    file.write_text("\n".join(lines) + "\n")
    return migrate(from_file(file), VERBS)


def test_what_a_script_exports_stands_before_the_command(tmp_path: Path) -> None:
    found = of_script(tmp_path, "export CUDA_VISIBLE_DEVICES=0", "export WANDB_PROJECT=foo", f"{RUN} --report_to wandb")
    inline = of_line(f"CUDA_VISIBLE_DEVICES=0 WANDB_PROJECT=foo {RUN} --report_to wandb")
    assert found.command == inline.command == "CUDA_VISIBLE_DEVICES=0 WANDB_PROJECT=foo luthier train CONFIG"
    assert found.outcomes == inline.outcomes
    assert note(found, "WANDB_PROJECT") == "mapped: stays before the command"


@pytest.mark.parametrize(
    ("lines", "before"),
    [
        (["export A=1 B='x y'  # both; C=3", RUN], "A=1 B='x y' "),
        (["export A=1; export B=2 && export C=3", RUN], "A=1 B=2 C=3 "),
        (["A=1", "export A B", RUN], "A=1 "),
        (["export A", "A=1; A=2", RUN], "A=2 "),
        (["declare -x A=1", RUN], "A=1 "),
        (["A=1", RUN], ""),
        (["A=1 make it", "# export A=1; export B=2", RUN], ""),
        ([RUN, "export A=1"], ""),
        (["export A=1 B=1", f"B=2 {RUN}"], "A=1 B=2 "),
        ([f"cd there && export A=1 && {RUN} > log && export B=1"], "A=1 "),
        (["export FORCE_TORCHRUN=1 A=1", RUN], "A=1 "),
        (["ROOT=/data", 'export HF_HOME="$ROOT/hf" && true', RUN], "HF_HOME=/data/hf "),
    ],
)
def test_only_what_is_exported_before_the_command_is_its_environment(
    tmp_path: Path, lines: list[str], before: str
) -> None:
    assert of_script(tmp_path, *lines).command == f"{before}luthier train CONFIG"


def test_an_export_fills_in_and_counts_as_inline(tmp_path: Path) -> None:
    found = of_script(
        tmp_path, "export MODEL=maker/m", "export NPROC_PER_NODE=4", RUN.replace("_path m", "_path ${MODEL}")
    )
    assert config(found)["model"] == "maker/m"
    assert found.command == "MODEL=maker/m luthier train CONFIG --nproc-per-node 4"
    assert note(found, "MODEL") == "mapped: stays before the command"
    assert note(found, "NPROC_PER_NODE") == "mapped: in the command"


def test_a_variable_that_the_shell_fills_in_is_told_and_not_written(tmp_path: Path) -> None:
    exports = ["export PYTHONPATH=$PYTHONPATH:src", 'export STAMP=$(date +"%F %T")', "export LOG=`pwd`"]
    for found in (
        of_script(tmp_path, *exports, RUN),
        migrate(from_words([f"PYTHONPATH=$PYTHONPATH:src STAMP='$(date)' LOG='`pwd`' {RUN}"]), VERBS),
    ):
        assert found.command == "luthier train CONFIG"
        assert [outcome.key for outcome in found.having("refused")] == ["PYTHONPATH", "STAMP", "LOG"]
        assert "the shell would fill it in" in note(found, "STAMP")


def test_a_secret_in_the_environment_is_not_shown(tmp_path: Path) -> None:
    found = of_script(
        tmp_path, "export WANDB_API_KEY=abc123", "export HF_TOKEN=$(cat abc123)", "export TOKENIZERS_PARALLELISM=false", RUN
    )  # fmt: skip
    assert found.command == "TOKENIZERS_PARALLELISM=false luthier train CONFIG"
    assert "abc123" not in json.dumps([outcome.as_dict() for outcome in found.outcomes])
    assert note(found, "WANDB_API_KEY").startswith("mapped: a secret stays out of the command")


def test_a_variable_called_as_the_place_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "run.sh", tmp_path / "o.yaml"
    file.write_text(f"export CONFIG=x.yaml\n{RUN}\n")
    assert cli.main(["config", "migrate", str(file), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["command"] == f"CONFIG=x.yaml luthier train {out}"


# other sources


def test_a_python_file_is_read_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "run.py"
    file.write_text(
        "import os\nos.abort()\nargs = {'model_name_or_path': 'm', 'do_train': True, 'dataset': os.environ['X']}\n"
    )
    with pytest.raises(UserError, match=r"line 3: dataset is os.environ\['X'\], which would have to be computed"):
        from_file(file)


def test_one_of_several_dicts_may_be_named() -> None:
    case = Path(__file__).parent / "cases" / "dbgpt_train_args.py"
    found = migrate(from_file(case, "predict_args"), {**VERBS, "predict": frozenset({"--template"})})
    assert found.command == (
        "luthier predict dbgpt_hub/output/adapter/sql-lora --data dbgpt_hub/data/example_text2sql_dev.json "
        "--out dbgpt_hub/output/pred/pred.sql --template llama2"
    )
    with pytest.raises(UserError, match="no dict other; there are train_args, predict_args"):
        from_file(case, "other")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"base_model": "m", "datasets": [], "sequence_len": 1, "micro_batch_size": 2}, "looks like axolotl, and migrate knows LLaMA-Factory only"),
        ({"model": "m", "data": {"train": "a"}, "stage": "sft"}, "a config of luthier's already"),
        ({"what": 1, "is": 2, "this": 3}, "migrate knows LLaMA-Factory only"),
    ],
)  # fmt: skip
def test_other_tools_are_refused(raw: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        migrate(Source("x", raw), VERBS)


def test_a_form_of_the_board_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "board.yaml"
    file.write_text("top.model_name: X\ntrain.learning_rate: 1e-4\n")
    with pytest.raises(UserError, match="a form saved in LLaMA Board"):
        from_file(file)


# the verb, and train


def test_train_says_to_migrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my sft.yaml"
    file.write_text(yaml.safe_dump(BASE))
    assert cli.main(["train", str(file)]) == 2
    told = capsys.readouterr().err
    command = f"luthier config migrate '{file}' --out '{file.with_name('my sft.luthier.yaml')}'"
    assert f"is a config of LLaMA-Factory's.\nMigrate it first: {command}" in told
    assert cli.main(["config", "migrate", str(file), "--out", str(file.with_name("my sft.luthier.yaml"))]) == 0
    assert load(file.with_name("my sft.luthier.yaml")).method.name == "lora"


def test_train_says_to_migrate_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.sh"
    file.write_text("llamafactory-cli train --model_name_or_path m --dataset a --output_dir o\n")
    assert cli.main(["train", str(file)]) == 2
    out = tmp_path / "run.luthier.yaml"
    assert f"{file} is a script, not a config." in (told := capsys.readouterr().err)
    assert f"luthier config migrate {file} --out {out}" in told
    assert cli.main(["config", "migrate", str(file), "--out", str(out)]) == 0
    assert load(out).method.name == "lora"


@pytest.mark.parametrize(
    "raw",
    [{"model": "m", "data": {"train": "a"}, "lora_rank": 3, "cutoff_len": 4, "template": "x"}, {"stage": "sft"}, {}],
)
def test_a_config_of_ours_with_strange_keys_is_ours(raw: dict[str, Any]) -> None:
    assert not is_llama_factory(raw)


def test_the_file_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.yaml", tmp_path / "new" / "b.yaml"
    source.write_text(yaml.safe_dump({**BASE, "cutoff_len": 512, "use_unsloth": True}))
    assert cli.main(["config", "migrate", str(source), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["written"] == str(out)
    assert told["command"] == f"luthier train {out}"
    assert {key["status"] for key in told["keys"]} == {"mapped", "changed", "refused"}
    text = out.read_text()
    assert "# Changed in meaning:\n# - cutoff_len 512: " in text
    assert "# Not taken over:\n# - use_unsloth True: luthier does not use unsloth" in text
    validate(yaml.safe_load(text))
    assert yaml.safe_load(text) == told["config"]
    assert cli.main(["config", "migrate", str(source), "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_without_out_only_the_config_goes_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "CUDA_VISIBLE_DEVICES=0",
        "python",
        "src/train.py",
        "--do_train",
        "--model_name_or_path",
        "m",
        "--dataset",
        "a",
    ]
    for given in (words, [" ".join(words)]):
        assert cli.main(["config", "migrate", "--", *given]) == 0
        printed = capsys.readouterr()
        assert yaml.safe_load(printed.out)["model"] == "m"
        assert "CUDA_VISIBLE_DEVICES=0 luthier train CONFIG" in printed.err


def test_nothing_is_written_where_something_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "a.yaml", tmp_path / "b.yaml"
    source.write_text(yaml.safe_dump({**BASE, "bf64": True}))
    assert cli.main(["config", "migrate", str(source), "--out", str(out), "--json"]) == 2
    printed = capsys.readouterr()
    assert "LLaMA-Factory has no key bf64; did you mean bf16" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["problems"]
    assert not out.exists()
