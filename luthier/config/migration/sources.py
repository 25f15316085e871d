"""What is migrated: a YAML or JSON config, a shell script or command line, or a dict in a Python file, read and never run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.config.files import read_file
from luthier.config.migration.command_lines import SCRIPTS, TOOLS, CommandLine, parse, split
from luthier.config.migration.table import table
from luthier.foundation.errors import UserError
from luthier.foundation.files import need_file

DICTS = ("train_args", "args", "predict_args")  # DB-GPT-Hub's names, the first that is there
# a shell's line: its parts between ; && || and |, and the assignments that a part may be
QUOTED = r"""\$\([^)]*\)|`[^`]*`|"[^"]*"|'[^']*'|\\."""
PART = re.compile(rf"""(?:{QUOTED}|[^;&|"'`\\])+""")
NAME, VALUE = r"[A-Za-z_]\w*", rf"""(?:{QUOTED}|[^\s;&|"'`\\])*"""
ASSIGNMENT = re.compile(rf"({NAME})(?:=({VALUE}))?")
ASSIGNMENTS = re.compile(
    rf"\s*(?:(?P<export>export|declare\s+-x)\s+(?P<exported>{NAME}(?:={VALUE})?(?:\s+{NAME}(?:={VALUE})?)*)"
    rf"|(?P<own>{NAME}={VALUE}(?:\s+{NAME}={VALUE})*))\s*(?P<comment>(?<=\s)#.*)?"
)
COMMAND = re.compile(rf"(?:^|[\s/])(?:{'|'.join(map(re.escape, (*TOOLS, *SCRIPTS)))})(?:\s|$)")


@dataclass(frozen=True)
class Source:
    """A config to migrate.

    Args:
        name: what it is called in messages.
        args: its keys and values.
        command: the command line, if it is one.
        python: whether it is DB-GPT-Hub's dict.
    """

    name: str
    args: Mapping[str, Any]
    command: CommandLine | None = None
    python: bool = False


def from_words(words: Sequence[str]) -> Source:
    """A command line, as words or as one text.

    Raises:
        UserError: it is none of LLaMA-Factory's, or its config file can't be read.
    """
    if len(words) > 1 or not re.search(r"\s", words[0]):
        return _of_command(parse(words), "the command line")  # the shell has filled in what it fills in
    return _of_command(_as_written(parse(split(words[0])), "the command line"), "the command line")


def from_file(path: Path, wanted: str | None = None) -> Source:
    """A file by its ending: .py, .sh, .json, else YAML.

    Args:
        wanted: the name of a dict in a Python file.

    Raises:
        UserError: missing, broken, or not LLaMA-Factory's.
    """
    if path.suffix == ".py":
        return Source(str(path), _python_dict(path, wanted), python=True)
    if path.suffix in (".sh", ".bash"):
        return _of_script(path)
    raw = read_file(path)
    if any(str(key).startswith(("top.", "train.", "infer.")) for key in raw):
        raise UserError(
            f"{path} is a form saved in LLaMA Board, not a config.",
            "Press `Preview command` there, and give that command: luthier config migrate -- COMMAND",
        )
    return Source(str(path), {str(key): value for key, value in raw.items()})


def _of_command(command: CommandLine, name: str) -> Source:
    """A command line with the config file it names, which its own settings go before."""
    settings = dict(command.settings)
    if command.config is not None:
        settings = {**read_file(Path(command.config)), **settings}
        name = command.config if not command.settings else f"{command.config} and {name}"
    return Source(name, settings, command)


def _of_script(path: Path) -> Source:
    """The one command of LLaMA-Factory's in a shell script: `name=value` before it is filled in, and exported ones stand before it."""
    text = re.sub(r"\\\r?\n", " ", need_file(path, "the script").read_text(encoding="utf-8-sig"))
    variables: dict[str, str] = {}
    exported: dict[str, None] = {}
    commands: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines():
        for part in PART.finditer(line):
            if part[0].lstrip().startswith("#"):
                break
            if found := ASSIGNMENTS.fullmatch(part[0]):
                for name, value in ASSIGNMENT.findall(found["exported"] or found["own"]):
                    if found["own"] or f"{name}=" in found["exported"]:
                        variables[name] = _filled(_unquoted(value), variables)
                    if found["export"]:
                        exported[name] = None
                if found["comment"]:
                    break
            elif COMMAND.search(part[0]):
                environment = {name: variables[name] for name in exported if name in variables}
                commands.append((_filled(line[part.start() :], variables), environment))
                break
    if len(commands) != 1:
        raise UserError(
            f"{path} has {len(commands) or 'no'} commands of LLaMA-Factory's.",
            "Give the one you mean: luthier config migrate -- COMMAND",
        )
    words, environment = commands[0]
    command = parse(split(words))
    inline = {item.partition("=")[0] for item in command.variables}
    before = tuple(f"{name}={value}" for name, value in environment.items() if name not in inline)
    command = replace(command, variables=(*before, *command.variables))
    return _of_command(_as_written(command, str(path)), str(path))


def _unquoted(value: str) -> str:
    """A value without its quotation marks; one that the shell computes stays as it is."""
    return value.strip("\"'") if _is_computed(value) else "".join(shlex.split(value))


def _is_computed(value: str) -> bool:
    return "$(" in value or "`" in value


def _as_written(command: CommandLine, name: str) -> CommandLine:
    """A command of a text, with the variables set aside whose values only the shell would know.

    Raises:
        UserError: so it is with a setting.
    """
    for key, value in command.settings.items():
        if "$" in str(value) or "`" in str(value):
            raise UserError(f"{name}: --{key} is {value}, which the shell would fill in.", "Write the value itself.")
    unfilled = tuple(item for item in command.variables if "$" in item or "`" in item)
    return replace(command, variables=tuple(i for i in command.variables if i not in unfilled), unfilled=unfilled)


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """`$name`, `${name}` and `${name:-default}` where the script says what they are; others stay."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        if name in variables and not _is_computed(variables[name]):
            return variables[name]
        return default.strip("\"'") if default is not None else match[0]

    return re.sub(r"\$\{(\w+)(?::?-([^}]*))?\}|\$(\w+)", value, text)


def _python_dict(path: Path, wanted: str | None) -> dict[str, Any]:
    """DB-GPT-Hub's `train_args = {...}`, read as a literal.

    Raises:
        UserError: no such dict, broken Python, or a value that is computed.
    """
    text = need_file(path, "the Python file").read_text(encoding="utf-8-sig")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path} is no Python: line {error.lineno}: {error.msg}.", "Mend that line.") from error
    dicts: dict[str, ast.Dict] = {}
    constants: dict[str, Any] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        if isinstance(node.value, ast.Dict):
            keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            if sum(key in table().keys for key in keys) >= 2:
                dicts.setdefault(name, node.value)
        elif isinstance(node.value, ast.Constant):
            constants[name] = node.value.value
    chosen = wanted or next((name for name in DICTS if name in dicts), next(iter(dicts), None))
    if chosen not in dicts:
        there = f"; there are {', '.join(dicts)}" if dicts else ""
        what = f"no dict {wanted}" if wanted else "no dict of LLaMA-Factory's keys, such as train_args = {...}"
        raise UserError(f"{path} has {what}{there}.", f"Name one as {path}#NAME.")
    return {_key(path, key): _literal(path, key, value, constants) for key, value in _pairs(dicts[chosen])}


def _pairs(node: ast.Dict) -> list[tuple[ast.expr | None, ast.expr]]:
    return list(zip(node.keys, node.values, strict=True))


def _key(path: Path, node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    line = f" in line {node.lineno}" if node is not None else ""
    raise UserError(f"{path}{line}: a key of the dict is no plain text.", "Write it as text; nothing is run here.")


def _literal(path: Path, key: ast.expr | None, node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UserError(
            f"{path}, line {node.lineno}: {_key(path, key)} is {ast.unparse(node)}, which would have to be computed.",
            "Write the value itself; the file is read, and never run.",
        ) from error
