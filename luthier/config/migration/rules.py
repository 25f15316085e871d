"""The rules of llama_factory.yaml's column `rule`: keys that decide together, or whose values are written otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.config.chat_templates import template_names
from luthier.config.migration import asking
from luthier.config.migration.answers import Answer, Case, changed, mapped, names, refused
from luthier.config.migration.data_rules import DATA_RULES
from luthier.config.migration.optimizer_rules import OPTIMIZER_RULES
from luthier.config.migration.table import table
from luthier.foundation.registry import nearest

STAGES = {"pt": "pretrain", "rm": "reward"}  # the others bear the same names


def stage(case: Case, key: str, value: Any) -> Answer:
    """The stage; preference losses that have a stage of their own choose it."""
    loss = case.value("pref_loss")
    own = loss if case.value("stage") == "dpo" and loss in ("orpo", "simpo") else None
    if key == "pref_loss":
        if own:
            return mapped(note=f"stage: {own}")
        return mapped(note="DPO's own loss") if value == "sigmoid" else mapped({"stage.loss": value})
    return mapped({"stage": own or STAGES.get(value, value)})


def finetuning_type(case: Case, key: str, value: Any) -> Answer:
    """The method."""
    if key == "full_finetune":
        return mapped({"method": "full"}) if value else mapped()
    if value == "none":
        return refused("luthier always trains something; to generate, name the model in `luthier chat`")
    if value == "freeze" and case.value("use_llama_pro"):
        return mapped({"method": "llama_pro"})
    return mapped({"method": value})


def llama_pro(case: Case, key: str, value: Any) -> Answer:
    """Added layers, which luthier adds itself."""
    if not value:
        return mapped()
    kind = case.value("finetuning_type")
    if kind != "freeze":
        return refused(f"luthier's llama_pro trains the new layers whole, not by {kind}")
    settings = {"method.num_new_layers": case.value("freeze_trainable_layers")}
    return changed(settings, "luthier adds the layers itself: name the model as it was before it was expanded")


def verb(case: Case, key: str, value: Any) -> Answer:
    """do_train, do_eval, do_predict."""
    if not value:
        return mapped()
    if key == "do_predict" and case.work == "train":
        return refused("train and predict are two commands: run `luthier predict` on the run afterwards")
    if key == "do_eval" and case.work == "train":
        return mapped(note="the evaluation comes after training" if case.value("eval_strategy") == "no" else "")
    return mapped(note=f"the verb `luthier {case.work}`")


def predict_with_generate(case: Case, key: str, value: Any) -> Answer:
    """Generating in an evaluation; for a config that only predicts, the verb does it."""
    if not value or case.work != "train":
        return mapped()
    return mapped({"training.predict_with_generate": True})


def flag_of_the_command(case: Case, key: str, value: Any) -> Answer:
    """What luthier takes on the command line."""
    if value in (None, False) or str(value).lower() in ("false", "none", "null"):
        return mapped()
    flag = {"overwrite_output_dir": "--overwrite", "trust_remote_code": "--trust-remote-code"}.get(key, "--resume")
    if key == "resume_from_checkpoint" and str(value).lower() != "true":
        return changed(
            None, "--resume goes on from the newest whole checkpoint of output_dir, not from one by name", (flag,)
        )
    return mapped(note=f"the flag {flag}", flags=(flag,))


def model(case: Case, key: str, value: Any) -> Answer:
    """The model, or the adapter whose base it is."""
    adapters = names(case.value("adapter_name_or_path") or ())
    if len(adapters) == 1 and not _takes_adapters(case) and not quantization_of(case):
        note = f"the adapter {adapters[0]} names its base itself"
        return changed(None, note) if case.work == "train" else mapped(note=note)
    return mapped({"model.name": value})


def quantization_of(case: Case) -> str | None:
    """--quantization of a verb that generates, as luthier names it; None where there is none."""
    bits = case.value("quantization_bit") if case.work in ("chat", "predict", "evaluate") else None
    bits = bits if case.value("quantization_method") in ("bitsandbytes", "bnb") else None
    return {4: str(case.value("quantization_type")), 8: "int8"}.get(bits) if bits is not None else None


def _takes_adapters(case: Case) -> bool:
    """Whether luthier's config names adapters beside their base."""
    return case.work == "train" and asking.refusal("model.adapters", ["a"], {}) is None


def adapter(case: Case, key: str, value: Any) -> Answer:
    """Adapters to start from: the last is trained further, or all are merged and a new one is made."""
    adapters = names(value or ())
    if not adapters:
        return mapped()
    if case.old:
        fresh = case.value("resume_lora_training") is False
    else:
        fresh = bool(case.value("create_new_adapter")) or case.given.get("resume_lora_training") is False
    if _takes_adapters(case):
        return mapped(
            {"model.adapters": adapters} if fresh else {"model.adapters": adapters, "model.continue_adapter": True}
        )
    if case.work != "train":
        if len(adapters) == 1 and not quantization_of(case):
            return mapped({"model.name": adapters[0]})
        return mapped(note="the option --adapter", flags=tuple(w for name in adapters for w in ("--adapter", name)))
    if len(adapters) > 1:
        return refused("luthier starts from one adapter: merge the others first with `luthier export`")
    note = "luthier merges the adapter into its base, and trains a new one"
    return mapped({"model.name": adapters[0]}, note) if fresh else changed({"model.name": adapters[0]}, note)


def create_new_adapter(case: Case, key: str, value: Any) -> Answer:
    """Whether a new adapter is trained, or the given one further: said where the adapter is."""
    there = bool(case.value("adapter_name_or_path"))
    return mapped(note="see the adapter" if there else "there is no adapter to start from")


def flash_attn(case: Case, key: str, value: Any) -> Answer:
    """The attention, which luthier chooses."""
    if value in (None, "auto", "disabled", False):
        return mapped()
    return changed(None, "luthier computes attention segment by segment, with torch's own kernels: nothing to choose")


def gradient_checkpointing(case: Case, key: str, value: Any) -> Answer:
    """transformers' switch, beside LLaMA-Factory's own."""
    if value:
        return mapped({"training.gradient_checkpointing": True})
    return mapped(note="disable_gradient_checkpointing decides there")


def quantization(case: Case, key: str, value: Any) -> Answer:
    """The bits of a quantized base."""
    if case.work == "train" or value is None:
        return mapped({"model.quantization.bits": value} if value is not None else {})
    kind = quantization_of(case)
    if kind is None:
        return refused(f"`luthier {case.work}` reads the model as it is")
    return mapped(note=f"the option --quantization {kind}", flags=("--quantization", kind))


def quantization_method(case: Case, key: str, value: Any) -> Answer:
    """bitsandbytes, or what luthier's quantization knows besides."""
    if value in ("bitsandbytes", "bnb", None):
        return mapped()
    return mapped({"model.quantization.method": value})


def template(case: Case, key: str, value: Any) -> Answer:
    """Templates by name."""
    if case.value("stage") == "pt":
        return mapped(note="pretraining has no template")
    if value is None:
        return mapped(note="the tokenizer's own")
    if value == "qwen3" and case.value("enable_thinking") is False:
        return mapped({"data.template": "qwen3-nothink"})
    known = table().templates
    found = known.get(value)
    own = value.replace("_", "-")
    if found is None and own not in template_names():
        close = nearest(value, known, 1)
        note = f"luthier has no template {value}"
        return refused(f"{note}; the tokenizer's own is used{f' (or is it {close[0]}?)' if close else ''}")
    name = found.name if found else own
    note = found.changed if found else ""
    if case.old:
        note = "that version put system prompts of its own before rows; set system in data.train to keep one"
    settings = {"data.template": name}
    return changed(settings, note) if note else mapped(settings)


def with_template(case: Case, key: str, value: Any) -> Answer:
    """Thinking or not, which is another template in luthier."""
    if value is not False:
        return mapped()
    if case.value("template") == "qwen3":
        return mapped(note="template: qwen3-nothink")
    return refused("luthier has no template without thoughts for it")


def lora_alpha(case: Case, key: str, value: Any) -> Answer:
    """Alpha; unset it is twice the rank (32 in DB-GPT-Hub's version)."""
    return mapped({"method.alpha": value if value is not None else 2 * case.value("lora_rank")})


def modules(case: Case, key: str, value: Any) -> Answer:
    """Names of modules."""
    target = {"additional_target": "method.modules_to_save", "oft_target": "method.target_modules"}.get(key)
    if key in ("galore_target", "apollo_target"):
        target = "training.optim.target_modules"
    target = target or "method.target_modules"
    if value is None:
        return mapped()
    listed = names(value)
    if listed == ["all"]:
        return mapped({target: "all-linear"} if target == "method.target_modules" else {})
    return mapped({target: listed})


def pissa(case: Case, key: str, value: Any) -> Answer:
    """PiSSA's start; the fast approximation has 16 iterations in luthier."""
    if not case.value("pissa_init"):
        return mapped()
    iterations = case.value("pissa_iter")
    if key == "pissa_iter":
        return mapped(note=f"method.init: {'pissa' if iterations == -1 else 'pissa_niter_16'}")
    if iterations in (-1, 16):
        return mapped({"method.init": "pissa" if iterations == -1 else "pissa_niter_16"})
    return changed({"method.init": "pissa_niter_16"}, f"16 iterations instead of {iterations}")


def freeze_layers(case: Case, key: str, value: Any) -> Answer:
    """Whole layers, or named modules of some layers: those luthier takes by their full name."""
    if case.value("use_llama_pro"):
        return mapped(
            note="method.num_new_layers" if key == "freeze_trainable_layers" else "the new layers learn whole"
        )
    parts = names(case.value("freeze_trainable_modules") or "all")
    extra = names(case.value("freeze_extra_modules") or ())
    layers = case.value("freeze_trainable_layers")
    if key == "freeze_extra_modules" and parts != ["all"]:
        return mapped(note="in method.trainable_modules")
    if key == "freeze_extra_modules":
        return mapped({"method.trainable_modules": extra} if extra else {})
    if key == "num_hidden_layers":
        return mapped(note="luthier counts the model's layers")
    if parts == ["all"]:
        return mapped({"method.trainable_layers": layers} if key == "freeze_trainable_layers" else {})
    count = _layer_count(case)
    if count is None and layers > 0:
        return refused(
            f"{', '.join(parts)} of the last {layers} layers: luthier needs to know how many layers there are. Name them, such "
            f"as method.trainable_modules: [layers.31.{parts[0]}], with method.trainable_layers: 0"
        )
    chosen = range(-layers) if layers < 0 else range((count or 0) - layers, count or 0)
    listed = [f"layers.{layer}.{part}" for layer in chosen for part in parts]
    if key == "freeze_trainable_layers":
        return mapped({"method.trainable_layers": 0}, "the layers' modules are named one by one")
    return mapped({"method.trainable_modules": [*listed, *extra]})


def _layer_count(case: Case) -> int | None:
    """How many layers the model has: as given, or as a local folder's config says."""
    given = case.value("num_hidden_layers")
    file = Path(str(case.value("model_name_or_path"))) / "config.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8")).get("num_hidden_layers")
        return int(found) if isinstance(found, int) else given
    return given if given is None else int(given)


def eval_strategy(case: Case, key: str, value: Any) -> Answer:
    """When to evaluate; luthier, as LLaMA-Factory, wants rows to evaluate on."""
    return mapped({"training.eval_strategy": value})


def report_to(case: Case, key: str, value: Any) -> Answer:
    """The services a run reports to."""
    if key == "use_swanlab":
        return mapped(note="training.report_to: [swanlab]" if value else "")
    listed = [name for name in names(value or ()) if name != "none"]
    if "all" in listed:
        return refused("name the services: tensorboard, wandb, swanlab, mlflow")
    if case.value("use_swanlab") and "swanlab" not in listed:
        listed.append("swanlab")
    return mapped({"training.report_to": listed} if listed else {})


def engine(case: Case, key: str, value: Any) -> Answer:
    """What computes on several devices."""
    return mapped({"training.engine": key} if value else {})


def generating(case: Case, key: str, value: Any) -> Answer:
    """How answers are generated. Luthier's evaluations all generate alike: as the one after training does there."""
    if key == "max_length" and case.value("max_new_tokens") > 0:
        return mapped(note="without effect, as there: max_new_tokens goes before it")
    if key == "max_new_tokens" and value <= 0:
        return mapped(note="max_length decides")
    if key == "generation_num_beams" and case.value("eval_num_beams"):
        return mapped(note="eval_num_beams goes before it")
    if key == "length_penalty" and case.value("num_beams") == 1:
        return mapped(note="without effect, as there: num_beams is 1")
    if value is None:
        return mapped()
    settings = {str(table().keys[key].to): value}
    if key == "max_length":  # luthier's max_new_tokens is never unset
        settings["generation.max_new_tokens"] = value
    if case.work != "train" or case.value("eval_strategy") == "no" or "eval_strategy" in table().keys[key].needs:
        return mapped(settings)
    only = "generation_max_length and generation_num_beams"
    return changed(settings, f"during training too, where LLaMA-Factory's evaluations take only {only}")


def with_command(case: Case, key: str, value: Any) -> Answer:
    """What stands in the command line, as commands.py writes it."""
    if value is None:
        return mapped()
    places: dict[str, str] = {}
    if case.work == "export":
        places = {"export_dir": "OUT of `luthier export`"}
        if not case.value("export_dir"):
            places["output_dir"] = "OUT of `luthier export`"
    elif case.work == "predict":
        places = {"predicted_input_filename": "the option --data", "predicted_out_filename": "the option --out"}
        if not case.given.get("predicted_out_filename"):
            places["output_dir"] = "the folder of --out"
    elif case.work == "evaluate" and case.value("task"):
        if key == "save_dir":
            return mapped(note="the option --out", flags=("--out", f"{value}/results.json"))
        places = {
            "task": "the options --benchmark and --split",
            "task_dir": "the folder of --benchmark",
            "n_shot": "the option --shots",
            "lang": "questions are asked in their own language",
        }
    return mapped(note=places.get(key) or f"nothing that `luthier {case.work}` needs")


def export_size(case: Case, key: str, value: Any) -> Answer:
    """The largest file, in GB."""
    if case.work != "export":
        return mapped(note=f"nothing that `luthier {case.work}` needs")
    return mapped(note="the option --max-shard-size", flags=("--max-shard-size", f"{value}GB"))


Rule = Callable[[Case, str, Any], Answer]
RULES: Mapping[str, Rule] = {
    **DATA_RULES,
    **OPTIMIZER_RULES,
    **{
        rule.__name__: rule
        for rule in (
            stage, finetuning_type, llama_pro, verb, predict_with_generate, flag_of_the_command, model, adapter,
            create_new_adapter, flash_attn, gradient_checkpointing, quantization, quantization_method, template, with_template, lora_alpha,
            modules, pissa, freeze_layers, eval_strategy, report_to, engine, generating, with_command, export_size,
        )
    },
}  # fmt: skip
