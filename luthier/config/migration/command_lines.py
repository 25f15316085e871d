"""LLaMA-Factory's command lines, taken apart: variables, launcher, script or verb, and the settings. Nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.config.migration.answers import Work
from luthier.config.migration.table import table
from luthier.foundation.errors import UserError

TOOLS = ("llamafactory-cli", "lmf", "llamafactory.cli")
VERBS: Mapping[str, Work] = {
    "train": "train", "export": "export", "chat": "chat", "webchat": "chat", "api": "serve", "eval": "evaluate",
    "webui": "webui",
}  # fmt: skip
SCRIPTS: Mapping[str, Work] = {
    "train.py": "train", "launcher.py": "train", "train_bash.py": "train", "sft_train.py": "train", "rm_train.py": "train", "train_sft.py": "train",
    "train_pt.py": "train", "train_rm.py": "train", "train_ppo.py": "train", "train_dpo.py": "train",
    "export_model.py": "export", "predict.py": "predict", "cli_demo.py": "chat", "web_demo.py": "chat", "api_demo.py": "serve",
    "api.py": "serve", "webchat.py": "chat", "webui.py": "webui", "train_web.py": "webui", "evaluate.py": "evaluate",
}  # fmt: skip
STAGE_OF = {"train_pt.py": "pt", "train_rm.py": "rm", "rm_train.py": "rm", "train_ppo.py": "ppo", "train_dpo.py": "dpo"}
PROCESSES = ("num_gpus", "nproc_per_node", "num_processes")
LAUNCHERS = ("deepspeed", "torchrun", "accelerate")
ENDS = re.compile(r"^(?:\d?>>?|\d?>&\d|\||\|\||&&|&|;|<)")  # where the shell's command ends
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
# variables that only LLaMA-Factory reads
ITS_OWN = (
    "FORCE_TORCHRUN", "ALLOW_EXTRA_ARGS", "DISABLE_VERSION_CHECK", "LLAMAFACTORY_VERBOSITY", "USE_MCA", "USE_RAY", "USE_V1",
    "USE_MEGATRON_BRIDGE", "GRADIO_SERVER_PORT", "GRADIO_SHARE", "API_PORT", "NPROC_PER_NODE",
)  # fmt: skip


@dataclass(frozen=True)
class CommandLine:
    """A command line in its parts.

    Args:
        variables: set before it, such as CUDA_VISIBLE_DEVICES=0.
        launcher: the launcher's own options.
        work: what its verb or script does; None: as its settings say.
        config: the YAML or JSON file it names.
        settings: key and value, in order.
        script: the script's name, "" for the tool.
        shell: what the shell does with the output, or runs afterwards.
        unfilled: variables set before it whose values the shell would fill in.
    """

    variables: tuple[str, ...]
    launcher: Mapping[str, str]
    work: Work | None
    config: str | None
    settings: Mapping[str, Any]
    script: str = ""
    shell: tuple[str, ...] = field(default=())
    unfilled: tuple[str, ...] = ()

    @property
    def processes(self) -> int | None:
        """Processes on this machine, where the launcher or a variable says it."""
        for name in PROCESSES:
            if self.launcher.get(name, "").isdigit():
                return int(self.launcher[name])
        return next(
            (int(item.partition("=")[2]) for item in self.variables if re.fullmatch(r"NPROC_PER_NODE=\d+", item)), None
        )


def split(text: str) -> list[str]:
    """A command line's words, as the shell would split it; lines may go on after a backslash.

    Raises:
        UserError: a quotation mark is open.
    """
    try:
        return shlex.split(re.sub(r"\\\r?\n", " ", text), comments=True)
    except ValueError as error:
        raise UserError(f"the command line can't be split into words: {error}.", "Close the quotation mark.") from error


def parse(words: Sequence[str]) -> CommandLine:
    """The parts of a command line.

    Raises:
        UserError: no script or verb of LLaMA-Factory's or DB-GPT-Hub's is in it, or a word is no setting.
    """
    words = list(words)
    ending = next((place for place, word in enumerate(words) if ENDS.match(word)), len(words))
    words, shell = words[:ending], words[ending:]
    variables: list[str] = []
    while words and (VARIABLE.fullmatch(words[0]) or words[0] in ("env", "export", "nohup", "!")):
        word = words.pop(0)
        if "=" in word:
            variables.append(word)
    if words and words[0].startswith("--"):  # the settings alone
        return CommandLine(tuple(variables), {}, None, None, _settings(words), shell=tuple(shell))
    place = next((place for place, word in enumerate(words) if _name(word) in (*TOOLS, *SCRIPTS)), None)
    if place is None:
        raise UserError(
            f"{shlex.join(words[:6])}{' ...' if len(words) > 6 else ''} is no command of LLaMA-Factory or DB-GPT-Hub: it names "
            "neither llamafactory-cli nor one of their scripts.",
            "migrate knows LLaMA-Factory only; for instance: luthier config migrate -- llamafactory-cli train sft.yaml",
        )
    launcher = _launcher(words[:place])
    name, rest = _name(words[place]), words[place + 1 :]
    work: Work | None
    if name in TOOLS:
        if not rest or rest[0] not in VERBS:
            raise UserError(f"{name} is not followed by one of its verbs.", f"They are {', '.join(VERBS)}.")
        work, rest, script = VERBS[rest[0]], rest[1:], ""
    else:
        work, script = SCRIPTS[name], name
    config = rest.pop(0) if rest and rest[0].endswith((".yaml", ".yml", ".json")) else None
    found = _settings(rest)
    if name in STAGE_OF:
        found = {"stage": STAGE_OF[name], **found}
    return CommandLine(tuple(variables), launcher, work, config, found, script, tuple(shell))


def _name(word: str) -> str:
    """A program's name without its folders; a module's, as `python -m` takes it, as the script that it is."""
    name = word.rsplit("/", 1)[-1]
    script = f"{name.rpartition('.')[2]}.py"
    return script if name == word and "." in name and name not in TOOLS and script in SCRIPTS else name


def _launcher(words: Sequence[str]) -> dict[str, str]:
    """A launcher's options by name; python's own words are none."""
    found: dict[str, str] = {}
    position = 0
    while position < len(words):
        word = words[position]
        if word.startswith("--"):
            key, sign, value = word[2:].partition("=")
            following = words[position + 1] if position + 1 < len(words) else "--"
            if not sign and not following.startswith("--"):
                value, position = following, position + 1
            found[key.replace("-", "_")] = value
        elif _name(word) in LAUNCHERS:
            found["launcher"] = _name(word)
        position += 1
    return found


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--flag`, `--no_flag`, and `key=value` after a config file.

    Raises:
        UserError: a word that belongs to no key, or a key that stands twice.
    """
    found: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word.startswith("--"):
            key, sign, value = word[2:].partition("=")
            taken: list[str] = [value] if sign else []
            while not sign and position < len(words) and not words[position].startswith("--"):
                taken.append(words[position])
                position += 1
        elif "=" in word:
            key, _, value = word.partition("=")
            taken = [value]
        else:
            raise UserError(f"the word {word!r} in the command line belongs to no setting.", "Write --key value.")
        key = key.replace("-", "_")
        if key.startswith("no_") and not taken and key not in table().keys:
            key, taken = key[3:], ["false"]
        if key in found:
            raise UserError(f"--{key} stands twice in the command line.", "Remove one of the two.")
        found[key] = True if not taken else taken[0] if len(taken) == 1 else taken
    return found
