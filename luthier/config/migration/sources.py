"""What is migrated: a YAML or JSON config, a shell script or command line, or a dict in a Python file, read and never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.files import read_file
from luthier.config.migration.command_lines import SCRIPTS, TOOLS, CommandLine, parse, split
from luthier.config.migration.table import table
from luthier.foundation.errors import UserError
from luthier.foundation.files import need_file

DICTS = ("train_args", "args", "predict_args")  # DB-GPT-Hub's names, the first that is there


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
    command = parse(split(words[0]))
    _refuse_unfilled(command, "the command line")
    return _of_command(command, "the command line")


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
    """The one command of LLaMA-Factory's in a shell script; `name=value` lines before it are filled in."""
    text = re.sub(r"\\\r?\n", " ", need_file(path, "the script").read_text(encoding="utf-8-sig"))
    variables: dict[str, str] = {}
    commands: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        if match := re.fullmatch(r"(?:export\s+)?([A-Za-z_]\w*)=(\S*|\"[^\"]*\"|'[^']*')", line):
            variables[match[1]] = _filled(match[2].strip("\"'"), variables)
        elif not line.startswith("#") and any(
            re.search(rf"(^|[\s/]){re.escape(word)}(\s|$)", line) for word in (*TOOLS, *SCRIPTS)
        ):
            commands.append(_filled(line, variables))
    if len(commands) != 1:
        raise UserError(
            f"{path} has {len(commands) or 'no'} commands of LLaMA-Factory's.",
            "Give the one you mean: luthier config migrate -- COMMAND",
        )
    command = parse(split(commands[0]))
    _refuse_unfilled(command, str(path))
    return _of_command(command, str(path))


def _refuse_unfilled(command: CommandLine, name: str) -> None:
    for key, value in command.settings.items():
        if "$" in str(value) or "`" in str(value):
            raise UserError(f"{name}: --{key} is {value}, which the shell would fill in.", "Write the value itself.")


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """`$name`, `${name}` and `${name:-default}` where the script says what they are; others stay."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        if name in variables and "$(" not in variables[name]:
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
