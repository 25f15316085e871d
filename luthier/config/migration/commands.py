"""The command lines that do what a config did, and what becomes of a launcher's options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.config.migration.answers import Answer, Case, Outcome, Work, names, refused
from luthier.config.migration.asking import default_of
from luthier.config.migration.command_lines import ITS_OWN, PROCESSES, CommandLine
from luthier.config.migration.data_rules import entries
from luthier.config.migration.rules import quantization_of
from luthier.config.yaml_text import flow

Verbs = Mapping[str, frozenset[str]]
"""Luthier's verbs, each with its options."""
FOR_TORCHRUN = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# torchrun's options with the names that DeepSpeed's launcher and accelerate's have for them
TORCHRUN = {
    "nnodes": ("nnodes", "num_nodes", "num_machines"),
    "node_rank": ("node_rank", "machine_rank"),
    "master_addr": ("master_addr", "main_process_ip"),
    "master_port": ("master_port", "main_process_port"),
}
SECRET = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
CUDA = "CUDA_VISIBLE_DEVICES"
CONFIG = "CONFIG"
"""Stands in a command for the file that is written."""


def command_of(case: Case, line: CommandLine | None, flags: Sequence[str], verbs: Verbs) -> str:
    """The command line; empty where luthier has no such verb."""
    if case.work not in verbs:
        return ""
    dropped = (*ITS_OWN, *FOR_TORCHRUN)
    names_set = [(item.partition("=")[0], item) for item in line.variables] if line is not None else []
    variables = [item for name, item in names_set if name not in dropped and not SECRET.search(name)]
    if line is not None and (devices := _devices(line)) and not _variable(line, CUDA):
        variables.append(f"{CUDA}={devices}")
    words = [case.work, *_operands(case), *flags]
    launched = _launched(line, case) if line is not None else []
    if launched and launched[0] == "torchrun":
        words = [*launched, "-m", "luthier.cli", *words]
    else:
        words = ["luthier", *words, *launched]
    before = [f"{name}={shlex.quote(value)}" for name, _, value in (item.partition("=") for item in variables)]
    return " ".join([*before, shlex.join(words)])


def generation_flags(answer: Answer, work: Work, options: Collection[str]) -> Answer:
    """Settings of the generation as options of a verb that generates, which bear the same names."""
    flags: list[str] = []
    for target, value in answer.settings.items():
        name = target.removeprefix("generation.")
        option = f"--{name.replace('_', '-')}"
        if name == "do_sample":  # the options say it by the temperature
            flags += [] if value else ["--temperature", "0"]
        elif option in options:
            flags += [option, str(value)]
        elif value != default_of(target, {}):
            return refused(f"`luthier {work}` has no {option}")
    note = answer.note or " ".join(["the options" if len(flags) > 2 else "the option", *flags[::2]] if flags else [])
    return Answer(answer.status, {}, note, tuple(flags))


def _operands(case: Case) -> list[str]:
    """What the verb works on."""
    if case.work == "train":
        return [CONFIG]
    if case.work == "webui":
        return []
    adapters = names(case.value("adapter_name_or_path") or ())
    alone = len(adapters) == 1 and not quantization_of(case)
    model = adapters[0] if alone else str(case.value("model_name_or_path"))
    if case.work == "export":
        # DB-GPT-Hub's export_model.py writes to output_dir
        return [model, str(case.value("export_dir") or case.value("output_dir"))]
    if case.work not in ("predict", "evaluate"):
        return [model]
    if case.work == "evaluate" and case.value("task"):
        return [model, *_benchmark(case)]
    rows = [str(case.given["predicted_input_filename"])] if case.given.get("predicted_input_filename") else []
    for entry in entries(case, "eval_dataset") or entries(case, "dataset"):
        rows.append(entry if isinstance(entry, str) else _as_option(entry))
    words = [model, *(word for row in rows for word in ("--data", row))]
    if case.work == "predict":
        out = (
            case.given.get("predicted_out_filename")
            or f"{case.value('output_dir') or 'runs/predict'}/predictions.jsonl"
        )
        words += ["--out", str(out)]
    return words


def _as_option(entry: Mapping[str, Any]) -> str:
    """An entry of data as --data takes it; JSON where YAML has quotation marks that a shell would need escaped."""
    taken = {name: value for name, value in entry.items() if name != "weight"}
    text = str(taken["path"]) if len(taken) == 1 else flow(taken)
    return json.dumps(taken, ensure_ascii=False) if "'" in text else text


def _benchmark(case: Case) -> list[str]:
    """Multiple choice: a task `mmlu_test` is the split test of the folder mmlu in task_dir."""
    name, _, split = str(case.value("task")).rpartition("_")
    folder = str(Path(str(case.value("task_dir"))) / (name or split))
    return ["--benchmark", folder, "--split", split, "--shots", str(case.value("n_shot"))]


def _launched(line: CommandLine, case: Case) -> list[str]:
    """The launcher that several processes or machines need."""
    if case.work != "train":
        return []
    nodes = _nodes(line)
    if nodes in ("1", "1:1"):
        return ["--nproc-per-node", str(line.processes)] if line.processes is not None and line.processes > 1 else []
    words = ["torchrun", "--nnodes", nodes]
    for option in ("node_rank", "master_addr", "master_port"):
        if value := _said(line, option):
            words += [f"--{option.replace('_', '-')}", value]
    processes = line.processes or 1
    if line.launcher.get("launcher") == "accelerate" and nodes.isdigit():  # which counts those of all machines
        processes = max(1, processes // int(nodes))
    return [*words, "--nproc-per-node", str(processes)]


def _said(line: CommandLine, option: str) -> str:
    """What the launcher or a variable says of an option of torchrun's; empty where neither does."""
    given = (line.launcher[name] for name in TORCHRUN[option] if name in line.launcher)
    return next(given, "") or _variable(line, option.upper())


def _nodes(line: CommandLine) -> str:
    """How many machines, as torchrun writes it."""
    return _said(line, "nnodes") or "1"


def _devices(line: CommandLine) -> str:
    """The GPUs that DeepSpeed's --include names on this machine."""
    found = re.fullmatch(r"localhost:([\d,]+)", line.launcher.get("include", ""))
    return found[1] if found else ""


def _variable(line: CommandLine, name: str) -> str:
    return next((item.partition("=")[2] for item in line.variables if item.startswith(f"{name}=")), "")


def launcher_outcomes(line: CommandLine) -> tuple[Outcome, ...]:
    """What becomes of variables, of a launcher's options, and of what the shell does with the output."""
    found = [_of_variable(line, item) for item in line.variables]
    found += [_of_unfilled(item) for item in line.unfilled]
    for option, value in line.launcher.items():
        if option == "launcher":
            continue
        name = f"{line.launcher.get('launcher', 'launcher')} --{option}"
        found.append(_of_option(line, name, option, value))
    if line.shell:
        found.append(
            Outcome(shlex.join(line.shell), None, "mapped", {}, "add it to luthier's command where you want it")
        )
    return tuple(found)


ALONE = "on one machine luthier's processes find each other by themselves"


def _of_variable(line: CommandLine, item: str) -> Outcome:
    name, _, value = item.partition("=")
    if name in FOR_TORCHRUN and _nodes(line) in ("1", "1:1"):
        return Outcome(name, value, "mapped", {}, ALONE)
    if name in ("NPROC_PER_NODE", *FOR_TORCHRUN):
        return Outcome(name, value, "mapped", {}, "in the command")
    if name == "FORCE_TORCHRUN":
        return Outcome(name, value, "mapped", {}, "luthier starts a process for each GPU by itself")
    if name in ITS_OWN:
        return Outcome(name, value, "mapped", {}, "only LLaMA-Factory reads it")
    if SECRET.search(name):
        return Outcome(name, "(hidden)", "mapped", {}, "a secret stays out of the command: set it in the environment")
    return Outcome(name, value, "mapped", {}, "stays before the command")


def _of_unfilled(item: str) -> Outcome:
    name, _, value = item.partition("=")
    value = "(hidden)" if SECRET.search(name) else value
    return Outcome(name, value, "refused", {}, "the shell would fill it in: set it before luthier's command yourself")


def _of_option(line: CommandLine, name: str, option: str, value: Any) -> Outcome:
    of_torchrun = any(option in names for names in TORCHRUN.values())
    if option == "standalone" or (of_torchrun and _nodes(line) in ("1", "1:1")):
        return Outcome(name, value, "mapped", {}, ALONE)
    if option in PROCESSES or of_torchrun:
        return Outcome(name, value, "mapped", {}, "in the command")
    if option == "hostfile":
        return Outcome(
            name,
            value,
            "refused",
            {},
            "start the command on every machine, each with its own --node-rank, and --master-addr",
        )
    if option == "include" and (devices := _devices(line)):
        return Outcome(name, value, "mapped", {}, f"{CUDA}={_variable(line, CUDA) or devices} before the command")
    if option == "config_file":
        return Outcome(
            name, value, "refused", {}, "luthier does not use accelerate: it starts a process for each GPU by itself"
        )
    return Outcome(name, value, "refused", {}, "luthier's own launcher and torchrun do without it")
