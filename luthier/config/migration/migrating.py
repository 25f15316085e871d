"""`migrate()`: a config of LLaMA-Factory's becomes one of luthier's, or a command line, and every key is accounted for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.config.loading import validate
from luthier.config.migration import asking
from luthier.config.migration.answers import Answer, Case, Outcome, Work, changed, mapped, refused
from luthier.config.migration.commands import Verbs, command_of, generation_flags, launcher_outcomes
from luthier.config.migration.rules import RULES, generating
from luthier.config.migration.sources import Source
from luthier.config.migration.table import ABSENT, Key, table
from luthier.config.migration.values import WrongValueError, as_kind
from luthier.config.migration.writing import nested
from luthier.foundation.errors import ConfigError
from luthier.foundation.registry import nearest

# they choose the plug-ins whose settings the others are
FIRST = (
    "stage", "finetuning_type", "full_finetune", "optim", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon",
    "deepspeed", "fsdp",
)  # fmt: skip
# without one of these a run would learn something else than was asked for
DECIDE = frozenset(
    ("stage", "finetuning_type", "full_finetune", "dataset", "pref_loss", "ref_model", "ref_model_adapters", "use_dft_loss",
     "use_asft_loss", "use_eaft_loss")
)  # fmt: skip
GENERATE: tuple[Work, ...] = ("predict", "chat")
OTHERS = {  # keys by which other tools' configs are known
    "axolotl": ("base_model", "datasets", "sequence_len", "micro_batch_size", "adapter"),
    "ms-swift": ("model_type", "sft_type", "train_type", "torch_dtype", "tuner_type"),
    "TRL": ("dataset_name", "load_in_4bit", "use_peft", "lora_r", "max_length", "dataset_train_split"),
}


@dataclass(frozen=True)
class Migration:
    """What became of a config.

    Args:
        work: what it does; `train` has a config, the others a command line.
        config: luthier's config, or None where there is none to write.
        command: the command line that does the same; CONFIG stands for the file. Empty where luthier can't do it.
        outcomes: every key that was given.
        added: luthier's keys that were written because LLaMA-Factory's default is another.
        problems: why nothing can be written.
    """

    source: str
    work: Work
    config: dict[str, Any] | None
    command: str
    outcomes: tuple[Outcome, ...]
    added: Mapping[str, Any]
    problems: tuple[str, ...]

    def having(self, status: str) -> list[Outcome]:
        """The keys of one status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]


class _Writer:
    """Collects settings, asking luthier for each."""

    def __init__(self, chosen: Mapping[str, str]) -> None:
        self.settings: dict[str, Any] = {}
        self.chosen: Mapping[str, str] = chosen

    def write(self, answer: Answer, instead: str) -> Answer:
        """The answer, or a refusal where luthier does not take one of its settings."""
        for target, value in answer.settings.items():
            why = asking.refusal(target, value, self.chosen)
            if why is not None:
                return refused(f"{why}; {instead}" if instead else why)
        clash = ""
        for target, value in answer.settings.items():
            before = self.settings.get(target, ABSENT)
            default = ABSENT if target in ("stage", "method") else asking.default_of(target, self.chosen)
            if before in (ABSENT, default, value):
                self.settings[target] = value
            elif value != default:
                clash = f"another key has set {target} to {before}"
        return refused(clash) if clash else answer


def migrate(source: Source, verbs: Verbs) -> Migration:
    """Migrate a config.

    Args:
        verbs: luthier's verbs with the options of each, as its command line has them.

    Raises:
        ConfigError: the config is another tool's.
    """
    _refuse_other_tools(source)
    given, wrong = _checked(source.args)
    wrong |= _exclusions(source.args, given)
    work = _work(source, given)
    if work in GENERATE:  # unasked
        given["predict_with_generate"] = True
    case = Case(given, _is_old(source, given), work, _before_0_9(source))
    writer = _Writer(_chosen(case))
    answers: dict[str, Answer] = dict(wrong)
    known = [name for name in source.args if name not in answers]
    for name in sorted(known, key=lambda name: table().canonical(name) not in FIRST):
        answers[name] = _answer(case, name, given.get(table().canonical(name)), writer, verbs)
    added = _add_defaults(case, writer) if case.work == "train" else _default_flags(case, verbs)
    outcomes = tuple(
        Outcome(name, "(hidden)" if name in SECRETS else value, answer.status, answer.settings, _note(answer))
        for name, value, answer in ((name, value, answers[name]) for name, value in source.args.items())
    ) + (launcher_outcomes(source.command) if source.command is not None else ())
    problems = [f"{name}: {answer.note}" for name, answer in answers.items() if answer.wrong]
    config = None
    if case.work == "train":
        problems += _not_to_be_without(case, answers)
        if not problems:
            config = nested(writer.settings)
            problems += _problems_of(config)
    flags = [flag for answer in answers.values() for flag in answer.flags]
    flags += [word for option, value in added.items() for word in (option, str(value))] if case.work != "train" else []
    command = command_of(case, source.command, flags, verbs)
    if not command and case.work != "train":
        problems.append(f"luthier has no verb {case.work} yet")
    if problems:
        config, command, added = None, "", {}
    return Migration(source.name, case.work, config, command, outcomes, added, tuple(dict.fromkeys(problems)))


def _note(answer: Answer) -> str:
    """What is said of a key; none stands without a word."""
    if answer.note or answer.settings:
        return answer.note
    return f"the option {answer.flags[0]}" if answer.flags else "as luthier does without it"


def _checked(args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Answer]]:
    """Values as their keys take them, by current name; and what is wrong by the name that was given."""
    given: dict[str, Any] = {}
    wrong: dict[str, Answer] = {}
    for name, value in args.items():
        if name not in table().keys:
            close = nearest(name, table().keys, 2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            wrong[name] = refused(f"LLaMA-Factory has no key {name}{hint}", wrong=True)
            continue
        key = table().canonical(name)
        try:
            found = as_kind(value, table().keys[key].takes)
        except WrongValueError as error:
            wrong[name] = refused(f"is {value!r}: {error}", wrong=True)
            continue
        if key in given and given[key] != found:
            wrong[name] = refused(f"it is an older name of {key}, which is {given[key]!r} here", wrong=True)
            continue
        given[key] = found
    return given, wrong


def _exclusions(args: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Answer]:
    """Keys beside others that LLaMA-Factory does not take together with them."""
    found: dict[str, Answer] = {}
    for name in args:
        if name not in table().keys or not given.get(table().canonical(name)):
            continue
        other = next((other for other in table().row(name).excludes if given.get(other)), None)
        if other is not None:
            found[name] = refused(f"it can't stand beside {other}: remove one of the two", wrong=True)
    return found


def _not_to_be_without(case: Case, answers: Mapping[str, Answer]) -> list[str]:
    """What a training config needs, and is refused or missing here."""
    refusals = [
        f"{name}: {answer.note}"
        for name, answer in answers.items()
        if answer.status == "refused" and name in table().keys and table().canonical(name) in DECIDE
    ]
    wrong = {table().canonical(name) for name, answer in answers.items() if answer.wrong and name in table().keys}
    modules = ("lora_target",) if case.value("finetuning_type") == "lora" else ()
    needed = ("model_name_or_path", "dataset", *modules)
    return refusals + [f"{name} is missing" for name in needed if case.value(name) is None and name not in wrong]


def _answer(case: Case, name: str, value: Any, writer: _Writer, verbs: Verbs) -> Answer:
    """What becomes of a key that was given."""
    key = table().canonical(name)
    row = table().keys[key]
    if case.work != "train":
        return _for_a_command(case, key, row, value, verbs)
    if row.option and not row.to:
        return mapped(note="for generation only")
    if why := case.acts(key):
        return mapped(note=f"without effect, as there: {why}")
    answer = _unwritten(case, key, row, value)
    answer = writer.write(answer, row.instead)
    if answer.status == "mapped" and row.remark and value not in (None, row.default):
        return Answer("mapped", answer.settings, answer.note or row.remark, answer.flags)
    return answer


def _unwritten(case: Case, key: str, row: Key, value: Any) -> Answer:
    if row.rule:
        return RULES[row.rule](case, key, value)
    if row.to:
        return _carried(case, row.to, row, value)
    if value in (None, row.default) or row.always is not None:
        return (
            mapped(note=row.always or "")
            if not row.changed or value in (None, row.default)
            else changed(None, row.changed)
        )
    return refused(row.never or "")


def _carried(case: Case, target: str, row: Key, value: Any) -> Answer:
    """A value that goes to luthier's key of the same meaning."""
    if isinstance(value, Hashable) and value in row.values:
        value = row.values[value]
    elif _is_off(case, target, row, value) and asking.refusal(target, value, _chosen(case)):
        return mapped(note="as luthier does without it")
    if value is None and (row.default is not None or asking.default_of(target, _chosen(case)) is None):
        return mapped()
    return changed({target: value}, row.changed) if row.changed else mapped({target: value})


def _is_off(case: Case, target: str, row: Key, value: Any) -> bool:
    """Whether a value asks for nothing: the default, or an empty one of what luthier does not have."""
    if value is None or (value == row.default and not row.needs):
        return True
    return not value and asking.lacks(target, _chosen(case))


def _chosen(case: Case) -> dict[str, str]:
    """The plug-ins that a config chooses, whether luthier has them or not."""
    found: dict[str, str] = {}
    for key in FIRST:
        if key in case.given or key in ("stage", "finetuning_type", "optim"):
            answer = RULES[table().keys[key].rule or ""](case, key, case.value(key))
            found |= {target: value for target, value in answer.settings.items() if target in asking.CHOICES}
    return {target: value for target, value in found.items() if asking.refusal(target, value, {}) is None}


def _for_a_command(case: Case, key: str, row: Key, value: Any, verbs: Verbs) -> Answer:
    """What becomes of a key of a config that generates or exports."""
    if row.rule == "generating":
        if why := case.acts(key):
            return mapped(note=f"without effect, as there: {why}")
        return generation_flags(generating(case, key, value), case.work, verbs.get(case.work, ()))
    if row.option:
        if case.work not in verbs:
            return refused(f"luthier has no verb {case.work} yet")
        if value in (None, case.default(key)) and row.option not in verbs.get(case.work, ()):
            return mapped(note="the default")
        if row.option not in verbs.get(case.work, ()):
            return refused(f"`luthier {case.work}` has no {row.option}")
        if row.values and value not in row.values:
            return refused(f"{row.option} of `luthier {case.work}` takes {', '.join(sorted(set(row.values.values())))}")
        return mapped(note=f"the option {row.option}", flags=(row.option, str(row.values.get(value, value))))
    if key == "output_dir":
        return RULES["with_command"](case, key, value)
    if row.rule in (
        "model",
        "adapter",
        "quantization",
        "export_size",
        "flag_of_the_command",
        "verb",
        "with_command",
        "dataset",
        "with_dataset",
        "eval_dataset",
    ):
        return RULES[row.rule](case, key, value)
    if row.rule == "template":
        answer = RULES["template"](case, key, value)
        name = answer.settings.get("data.template")
        if name is None or "--template" not in verbs.get(case.work, ()):
            return (
                answer if answer.status == "refused" else mapped(note=answer.note or "the model carries its template")
            )
        return Answer(answer.status, {}, answer.note, ("--template", name))
    if row.never is not None and value not in (None, row.default):
        return refused(row.never)
    return mapped(note=f"nothing that `luthier {case.work}` needs")


def _add_defaults(case: Case, writer: _Writer) -> dict[str, Any]:
    """Write what LLaMA-Factory takes where nothing is given, wherever luthier's own default is another."""
    added: dict[str, Any] = {}
    unset = [key for key, row in table().keys.items() if case.given.get(key) is None and row.alias_of is None]
    for key in sorted(unset, key=lambda key: key not in FIRST):
        row, default = table().keys[key], case.default(key)
        if case.acts(key) or (default == ABSENT and key != "lora_alpha"):
            continue
        before = dict(writer.settings)
        answer = _unwritten(case, key, row, None if default == ABSENT else default)
        if not answer.settings or any(target in before for target in answer.settings):
            continue
        if writer.write(answer, "").status == "refused":
            continue
        for target, value in answer.settings.items():
            if target in ("stage", "method") or value != asking.default_of(target, writer.chosen):
                added[target] = value
            else:
                del writer.settings[target]
    return added


def _default_flags(case: Case, verbs: Verbs) -> dict[str, Any]:
    """The options that say LLaMA-Factory's defaults of generation, wherever luthier's are others."""
    added: dict[str, Any] = {}
    for key, row in table().keys.items():
        if row.rule != "generating" or case.given.get(key) is not None or case.acts(key):
            continue
        answer = generating(case, key, case.default(key))
        if any(value != asking.default_of(target, {}) for target, value in answer.settings.items()):
            flags = generation_flags(answer, case.work, verbs.get(case.work, ())).flags
            added |= dict(zip(flags[::2], flags[1::2], strict=True))
    return added


def _problems_of(config: dict[str, Any]) -> list[str]:
    try:
        validate(config)
    except ConfigError as error:
        return error.problems
    return []


def _work(source: Source, given: Mapping[str, Any]) -> Work:
    """What a config does: as its command says, else as its keys do."""
    said = source.command.work if source.command is not None else None
    if said is not None and said != "train":
        return said
    if given.get("do_train"):
        return "train"
    if given.get("predicted_input_filename") or given.get("do_predict") or given.get("predict_with_generate"):
        return "predict"
    if given.get("export_dir"):
        return "export"
    if given.get("task"):
        return "evaluate"
    if given.get("do_eval"):
        return "evaluate"
    return "train" if said == "train" or "dataset" in given or "stage" in given or "output_dir" in given else "chat"


def _is_old(source: Source, given: Mapping[str, Any]) -> bool:
    """Whether a config is of the version that DB-GPT-Hub carries."""
    marks = ("max_source_length", "max_target_length", "predicted_input_filename")
    script = source.command.script if source.command is not None else ""
    return source.python or any(key in given for key in marks) or script in ("sft_train.py", "rm_train.py")


def _before_0_9(source: Source) -> bool:
    by_script = source.command is not None and source.command.script == "train_bash.py"
    return by_script or bool({"checkpoint_dir", "resume_lora_training", "reserved_label_len"} & set(source.args))


def _refuse_other_tools(source: Source) -> None:
    unknown = [key for key in source.args if key not in table().keys]
    known = len(source.args) - len(unknown)
    if source.command is not None or "model_name_or_path" in source.args or known > len(unknown):
        return
    tool = next((name for name, keys in OTHERS.items() if sum(key in source.args for key in keys) >= 2), None)
    ours = {"model", "data", "training"} <= set(source.args) or {"model", "data"} <= set(source.args)
    if ours:
        raise ConfigError(["it is a config of luthier's already"], source.name)
    raise ConfigError(
        [
            f"{f'it looks like {tool}, and ' if tool else ''}migrate knows LLaMA-Factory only (found {', '.join(unknown[:5])})"
        ],
        source.name,
    )


SECRETS = frozenset(
    ("hf_hub_token", "hf_auth_token", "ms_hub_token", "om_hub_token", "hub_token", "push_to_hub_token", "swanlab_api_key",
     "swanlab_lark_secret", "swanlab_lark_webhook_url")
)  # fmt: skip
