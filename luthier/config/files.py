"""Config files, and YAML as a config has it."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from luthier.foundation.errors import UserError
from luthier.foundation.files import need_file


class ConfigLoader(yaml.SafeLoader):
    """YAML's safe loader, but two equal keys are refused (it keeps the last), and a date stays the text it is."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's attribute, not a field
        start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _unique_mapping(loader: ConfigLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, mark = loader.construct_object(key_node, deep=True), key_node.start_mark
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice, in lines {seen[key]} and {mark.line + 1}", mark
            )
        seen[key] = mark.line + 1
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


ConfigLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for position, (key, _) in enumerate(pairs):
        if key in [earlier for earlier, _ in pairs[:position]]:
            raise UserError(f"the key {key!r} stands twice in one JSON object.", "Remove one of the two.")
    return dict(pairs)


def read_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON config file as a dict (`.json` is read as JSON, anything else as YAML).

    Raises:
        UserError: missing, empty, not UTF-8, broken (line and column are named), or no mapping.
    """
    need_file(path, "the config file")
    if path.is_dir():
        raise UserError(f"the config {str(path)!r} is a folder.", f"Name a file, such as {path / 'config.yaml'}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the config file {path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    try:
        # YAML refuses tabs between tokens, which JSON files may have
        if path.suffix.lower() == ".json":
            raw = json.loads(text, object_pairs_hook=_unique_pairs)
        else:
            raw = yaml.load(text, Loader=ConfigLoader)  # noqa: S506 - it is a SafeLoader
    except json.JSONDecodeError as error:
        raise UserError(
            f"the config file {path} is broken JSON at line {error.lineno}, column {error.colno}: {error.msg}.",
            "Mend that line.",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(f"the config file {path} is broken YAML{where}: {what}.", "Mend that line.") from error
    except RecursionError as error:
        raise UserError(
            f"the config file {path} is nested too deeply to be read.", "A config has a few levels."
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            f"the config file {path} holds {'nothing' if raw is None else type(raw).__name__}, not a mapping of keys.",
            "The README shows a config of six lines.",
        )
    return raw
