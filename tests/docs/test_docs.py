"""What the documentation says can be done: commands parse, links lead somewhere, configs load, names are in the code."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from luthier import cli
from luthier.config.loading import apply_override, validate
from luthier.config.plugins import EXPORTERS, METHODS, OPTIMIZERS

ROOT = Path(__file__).parents[2]
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
PAGES = (*READMES, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("README.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
USAGE_ERROR = typer.BadParameter.__mro__[1]  # typer brings its own copy of click, or uses the installed one
# what a config needs besides the part that a page shows
NEEDED = {"model": "smollm2-135m", "data": {"train": "rows.jsonl"}}
PLACEHOLDERS = {"CONFIG", "MODEL", "OUT", "DIR", "NAME", "KEY"}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def command_lines(page: Path) -> list[str]:
    """Shell lines of a page's blocks, without comments and without a prompt's `$`."""
    lines = []
    for block in blocks(page, "bash", "text"):
        shell = block.splitlines()
        if block not in blocks(page, "bash"):
            shell = [line for line in shell if line.lstrip().startswith(("$ luthier", "luthier", ".venv/bin/luthier"))]
        lines += [shlex.join(shlex.split(line.strip().removeprefix("$ "), comments=True)) for line in shell]
    return [line for line in lines if line]


def luthier_arguments(line: str) -> list[str] | None:
    """The arguments of luthier in a shell line, or None for another program's."""
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words[1:] if words and words[0].split("/")[-1] == "luthier" else None


def verbs() -> Any:
    """The verbs by name; some hold further verbs in their `commands`."""
    group: Any = typer.main.get_command(cli.app)
    return group.commands


def parse(arguments: list[str]) -> Any:
    """Walk down to the verb and let it parse its own arguments; nothing runs.

    Raises:
        USAGE_ERROR: no such verb, option or argument.
    """
    known, rest = verbs(), list(arguments)
    while True:
        if rest[0] not in known:
            raise USAGE_ERROR(f"luthier has no verb {rest[0]}")
        name, command, rest = rest[0], known[rest[0]], rest[1:]
        if not hasattr(command, "commands"):
            return command.make_context(name, rest)
        known = command.commands


def shown_commands() -> Iterator[Any]:
    for page in PAGES:
        for line in command_lines(page):
            if (arguments := luthier_arguments(line)) is not None:
                yield pytest.param(arguments, id=f"{page.relative_to(ROOT)}: {line}")
        for text in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
            arguments = luthier_arguments(text) if text.startswith("luthier ") else None
            if arguments and not {"...", "config.yaml"} & set(arguments):
                yield pytest.param(arguments, id=f"{page.relative_to(ROOT)}: {text}")


def test_there_are_commands_to_check() -> None:
    assert len([line for line in command_lines(READMES[0]) if luthier_arguments(line)]) >= 10


def config_text(name: str) -> str:
    """A config file of the repository; mine.yaml is the one that the README tells to write."""
    if name == "mine.yaml":
        found = re.search(
            r"saved as `mine.yaml`:\n\n```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
        )
        assert found is not None
        return found[1]
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", list(shown_commands()))
def test_a_command_line_parses(arguments: list[str]) -> None:
    if arguments[0].startswith("--"):
        return
    inner = getattr(verbs().get(arguments[0]), "commands", {})
    if len(arguments) == 1 + bool(inner) and [arguments[0], *arguments[1:]] != ["config", "explain"]:
        assert arguments[0] in verbs()
        assert not inner or arguments[1] in inner
        return  # a verb that is only named
    context = parse(arguments)
    given = context.params
    if given.get("config") and given["config"] not in PLACEHOLDERS:
        config, settings = cli.split_config(given["config"], list(given.get("settings") or ()))
        raw = yaml.safe_load(config_text(config)) if config else {}
        if given.get("model_shape"):  # it plans without a config's model and rows
            raw = {"model": "m", "data": {"train": "rows.jsonl"}, **raw}
        for setting in settings:
            apply_override(raw, setting)
        validate(raw, for_training=arguments[0] != "data")  # the data verbs show rows of any stage
    if "format" in given:
        assert given["format"] in EXPORTERS.names()
    if context.info_name == "explain" and given["key"] and given["key"] not in PLACEHOLDERS:
        from luthier.commands.config import explain

        assert explain(given["key"]).entries


def test_a_command_that_does_not_exist_would_be_found() -> None:
    for wrong in (
        ["trian", "c.yaml"],
        ["chat", "m", "--promt", "x"],
        ["models", "fetsh", "x"],
        ["plan", "--rows", "2"],
    ):
        with pytest.raises(USAGE_ERROR):
            parse(wrong)


def test_both_readmes_show_the_same_commands_and_configs() -> None:
    english, chinese = READMES
    assert command_lines(english) == command_lines(chinese)
    assert blocks(english, "yaml", "python") == blocks(chinese, "yaml", "python")
    links = [sorted({link for link in LINK.findall(page.read_text()) if "README" not in link}) for page in READMES]
    assert set(links[1]) | {"benchmarks/results/sft.json"} == set(links[0])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = [*command_lines(page), *INLINE.findall(text)]
        assert {line.split()[1] for line in shown if line.startswith("make ")} <= targets, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_load(page: Path) -> None:
    for block in blocks(page, "yaml"):
        shown = yaml.safe_load(block)
        raw = {**NEEDED, **shown}
        if isinstance(shown.get("data"), dict):
            raw["data"] = {**NEEDED["data"], **shown["data"]}
        elif shown.get("training", {}).get("eval_strategy"):
            raw["data"] = {**NEEDED["data"], "validation": 0.1}
        validate(raw)
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "luthier.train":
                validate(ast.literal_eval(node.args[0]))


def test_the_config_in_the_readme_has_six_lines() -> None:
    assert len(blocks(READMES[0], "yaml")[0].splitlines()) == 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_are_in_the_code(page: Path) -> None:
    """Files in backticks exist; `function()` is defined, in that page's last named file or anywhere in luthier."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "luthier").rglob("*.py")))
    for name in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.fullmatch(r"(luthier|benchmarks|examples|tests)/[\w/.]+", name):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        if match := re.fullmatch(r"(\w+)\(\)", name):
            assert f"def {match[1]}(" in sources or match[1] in ("get_run",), f"{page.name} names {name}"


def test_every_verb_stands_in_the_table() -> None:
    for page in READMES:
        text = page.read_text(encoding="utf-8")
        for name, command in verbs().items():
            assert f"| `luthier {name}" in text, f"{page.name} lacks {name}"
            for inner in getattr(command, "commands", {}):
                assert re.search(rf"`(luthier {name} )?{inner}\b", text), f"{page.name} lacks {name} {inner}"


def test_every_method_stands_in_its_tables() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in METHODS.names():
        assert f"\n| `{name}` | " in text, f"the table of methods lacks {name}"
        assert len(re.findall(rf"^\|.*`{name}`", text, re.MULTILINE)) >= 2, f"{name} is not in the table of formats"


def test_every_optimizer_stands_in_its_tables() -> None:
    text = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
    for name in OPTIMIZERS.names():
        rows = re.findall(rf"^\| `{name}` \| .*$", text, re.MULTILINE)
        assert len(rows) >= 2, f"{name} is not in the table of ideas and in that of costs"


def test_no_page_names_this_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(root|home|work|Users)/", page.read_text(encoding="utf-8")), page


@pytest.mark.network
def test_the_quickstart_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, talk, export: the README's way, with two steps of training."""
    run, out = tmp_path / "run", tmp_path / "adapter"
    config = str(ROOT / "examples" / "identity" / "config.yaml")
    rows = f"data.train={ROOT / 'examples' / 'identity' / 'identity.jsonl'}"
    small = ["training.max_steps=2", "training.per_device_train_batch_size=2", f"output_dir={run}"]
    assert cli.main(["train", config, rows, *small, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trained["steps"] == 2
    assert (run / "loss.png").stat().st_size > 0
    question = ["--prompt", "Who made you?", "--max-new-tokens", "8"]
    assert cli.main(["chat", str(run), *question, "--compare-base", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["answer"]
    assert told["base_answer"]
    assert cli.main(["export", str(run), str(out), "--format", "adapter"]) == 0
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "optimizer.safetensors").exists()


def test_the_quickstarts_script_runs_to_its_end(
    tmp_path: Path, tiny_llama: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script itself, on a tiny model: it asks, trains, asks again and names what to try next."""
    import importlib.util

    from tests.tiny import config_for

    place = ROOT / "examples" / "identity"
    spec = importlib.util.spec_from_file_location("quickstart", place / "quickstart.py")
    assert spec is not None and spec.loader is not None
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(config_for(tiny_llama, rows, tmp_path / "run", max_steps=2)))
    monkeypatch.setattr(quickstart, "CONFIG", config)
    monkeypatch.setattr(quickstart, "HERE", place)
    monkeypatch.setattr(quickstart, "fetch", lambda name: None)
    assert quickstart.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("  before:") == printed.count("  after:") == 3
    assert f"chat {tmp_path / 'run'} --compare-base" in printed
