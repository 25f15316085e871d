"""`luthier auto MODEL DATA`: a config from the rows, the model and the machine, each choice with its reason; then the run."""

from __future__ import annotations

import glob
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands import run_folder
from luthier.commands.launching import resuming
from luthier.config.loading import load
from luthier.config.yaml_text import commented, flow
from luthier.foundation.errors import UserError
from luthier.foundation.files import human_bytes, need_place, read_json, write_text
from luthier.foundation.progress import say
from luthier.planning.auto import Choice, Prediction, choose, tokens_of_a_step
from luthier.planning.budget import Budget, evaluations_after, minutes_of, run_seconds, scoring_steps, within
from luthier.planning.fitting import fit

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from luthier.planning.planner import Planner

SECTIONS = ("data", "training")
# above this many minutes a person may want to know about --budget
LONG_MINUTES = 30
# of a run's other parts, on a processor
WRITING_SECONDS = 8.0
BYTES_PER_SECOND = 200e6


@dataclass(frozen=True)
class AutoResult:
    """What was chosen, and what came of it.

    Args:
        config: the file that was written.
        choices: key, value and reason.
        peak_bytes, seconds: what the run was predicted to take.
        training: the run's results, None under --dry-run.
        evaluations: lines of the evaluations on the held-out rows, in order.
    """

    config: str
    choices: tuple[Choice, ...]
    peak_bytes: int
    seconds: float
    training: Mapping[str, Any] | None
    evaluations: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """The evaluations, for the terminal."""
        if not self.evaluations:
            return ""
        lines = [
            ", ".join(
                f"{name.removeprefix('eval_')} {value:.4g}" for name, value in line.items() if name.startswith("eval_")
            )
            for line in self.evaluations
        ]
        return "\n".join(
            [
                "On the held-out rows:",
                *(f"  step {line['step']}: {text}" for line, text in zip(self.evaluations, lines, strict=True)),
            ]
        )


def auto(
    model: str,
    data: str,
    *,
    output: str | None = None,
    dry_run: bool = False,
    budget: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> AutoResult:
    """Choose a config, write it, and train.

    Args:
        output: the run's folder; the config is written beside it, as `FOLDER.yaml`.
        budget: minutes that the run may take.
        resume: go on with the config that is there, as it is, edited or not; a budget then only says when to stop.

    Raises:
        UserError: rows that auto does not choose for, a model that does not fit, a folder in use or not to be written.
    """
    if resume and dry_run:
        raise UserError("--resume and --dry-run exclude each other.", "Go on with the run, or only choose.")
    folder = Path(output or f"runs/auto-{_stem(data)}").expanduser()
    if folder.name in ("", ".."):
        raise UserError(
            f"--output {str(folder)!r} names no folder of the run's own, which the config is written beside.",
            "Name one, such as runs/mine.",
        )
    file = folder.with_name(f"{folder.name}.yaml")
    if resume and file.exists():
        return _gone_on_with(file, budget, overwrite, trust_remote_code)
    if file.exists() and not overwrite:
        raise UserError(
            f"{file} is there already.",
            f"Train it as it is with `luthier train {shlex.quote(str(file))}`, go on with --resume, or choose anew with --overwrite.",
        )
    need_place(file, "the config")
    if not dry_run:  # a run that is there is of another config, which alone goes on with it
        run_folder.check_claim(folder, resume=False, overwrite=overwrite, resume_command=_goes_on_with(folder))
    result, after = _chosen(model, data, folder, file, budget, trust_remote_code)
    if dry_run:
        return result
    if budget is None and result.seconds > 60 * LONG_MINUTES:
        say(
            f"That takes {minutes_of(result.seconds)}; Ctrl-C stops it, and --budget MINUTES makes a shorter run of it."
        )
    if budget is None:
        return _trained(result, resume, overwrite, trust_remote_code)
    return _in_time(result, budget, after, resume, overwrite, trust_remote_code)


def _goes_on_with(folder: Path) -> str:
    """The command that goes on with a folder's run: as it was started, or with the config that it has."""
    noted = read_json(folder / run_folder.RUN_FILE) if (folder / run_folder.RUN_FILE).exists() else {}
    return resuming(noted.get("command") or shlex.join(["luthier", "train", str(folder / run_folder.CONFIG_FILE)]))


def _gone_on_with(file: Path, budget: float | None, overwrite: bool, trust_remote_code: bool) -> AutoResult:
    """The run of a config that was chosen before."""
    chosen = AutoResult(str(file), (), 0, 0.0, None)
    if budget is None:
        say(f"Going on with {file} as it is.")
        return _trained(chosen, True, overwrite, trust_remote_code)
    config = load(file)
    say(
        f"Going on with {file} as it is: its rows, steps and learning rates stay as they were chosen, and --budget only says "
        "when to stop; --overwrite chooses anew."
    )
    scored = config.training.eval_strategy != "no"
    again = scored and config.stage.name in ("classification", "regression")  # which predict once more at the end
    return _in_time(chosen, budget, (None, scored + again), True, overwrite, trust_remote_code)


def _in_time(
    chosen: AutoResult,
    budget: float,
    after: tuple[float | None, int],
    resume: bool,
    overwrite: bool,
    trust_remote_code: bool,
) -> AutoResult:
    """Train for so many minutes of this command at the most.

    Args:
        after: how many steps take as long as an evaluation, None if nobody knows; how many of these come after the last step.
    """
    from luthier.training.deadline import Deadline

    kept = load(chosen.config).training.save_strategy != "no"  # the file may be another when the run has ended
    deadline = Deadline(time.monotonic() + 60 * budget - _gone(), *after, WRITING_SECONDS)
    result = _trained(chosen, resume, overwrite, trust_remote_code, [deadline])
    if deadline.stopped_after is not None:
        flag, does = ("--resume", "goes on to the end") if kept else ("--overwrite", "trains the whole of it")
        say(
            f"The budget was used up after step {deadline.stopped_after}, sooner than predicted: final/ is what was learnt "
            f"until then. `luthier train {shlex.quote(chosen.config)} {flag}` {does}."
        )
    return result


def _gone() -> float:
    """Seconds since this program began."""
    import psutil

    return time.time() - psutil.Process().create_time()


def _chosen(
    model: str, data: str, folder: Path, file: Path, budget: float | None, trust_remote_code: bool
) -> tuple[AutoResult, tuple[float, int]]:
    """Look, choose, and write the config; also how many steps take as long as an evaluation, and how many of these come
    after the last one."""
    from luthier.commands.looking import look

    facts = look(model, data, trust_remote_code=trust_remote_code)
    predict = Predictor(trust_remote_code)
    choices = choose(facts, model, data, str(folder))
    try:
        choices = fit(facts, choices, predict)
        found = predict.timed(choices)
    except UnforeseenError as error:
        if budget is not None:
            raise UserError(f"--budget needs a prediction: {error}.", "Leave it out.") from error
        say(f"Whether the run fits is not known: {error}.")
        found = Prediction(0, 0.0)
    per_token = found.seconds_per_step / tokens_of_a_step(facts, choices)
    if budget is not None:
        to_come = predict.set_up_seconds + 4 * facts.parameters / BYTES_PER_SECOND + WRITING_SECONDS
        choices = within(facts, choices, per_token, Budget(budget, _gone(), to_come))
    seconds = run_seconds(facts, choices, per_token)
    head = [
        f"Chosen by `luthier auto {shlex.join([model, data])}`; docs/auto.md states the rules.",
        f"Change what you like, and train it: luthier train {shlex.quote(str(file))}",
    ]
    if found.peak_bytes:
        head.append(
            f"Predicted: {human_bytes(found.peak_bytes)} of memory beyond the libraries', {minutes_of(seconds)} of training."
        )
    text = config_text(choices, head)
    load(_nested(choices))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    say(text.rstrip())
    say(f"Written to {file}.")
    after = scoring_steps(facts, choices), evaluations_after(facts, choices)
    return AutoResult(str(file), choices, found.peak_bytes, seconds, None), after


def _trained(
    chosen: AutoResult,
    resume: bool,
    overwrite: bool,
    trust_remote_code: bool,
    callbacks: Sequence[TrainerCallback] = (),
) -> AutoResult:
    """Train the file, and take the evaluations out of the run's history."""
    from luthier.commands.train import train

    result = train(
        chosen.config,
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        callbacks=callbacks,
    )
    evaluations = tuple(
        {key: value for key, value in line.items() if key == "step" or (key.startswith("eval_") and not _timing(key))}
        for line in result.history
        if "eval_loss" in line
    )
    return replace(chosen, training=result.as_dict(), evaluations=evaluations)


class UnforeseenError(Exception):
    """The model's step can't be traced, so its memory and time are not known."""


class Predictor:
    """Memory and time of one run under several configs, as `luthier plan` reckons them.

    Attributes:
        set_up_seconds: what reading and tokenizing all rows took, as the run will do again.
    """

    def __init__(self, trust_remote_code: bool) -> None:
        self.trust_remote_code = trust_remote_code
        self.set_up_seconds = 0.0
        self._planner: Planner | None = None

    def __call__(self, choices: tuple[Choice, ...]) -> Prediction:
        """Memory, beyond what this process has taken. Raises UnforeseenError."""
        return self._planned(choices, with_time=False)

    def timed(self, choices: tuple[Choice, ...]) -> Prediction:
        """Memory and time; operations are run for five seconds to know it. Raises UnforeseenError."""
        return self._planned(choices, with_time=True)

    def _planned(self, choices: tuple[Choice, ...], *, with_time: bool) -> Prediction:
        from luthier.commands.setup import set_up
        from luthier.planning.planner import Planner
        from luthier.planning.subject import Subject

        config = load(_nested(choices))
        if self._planner is None:  # rows are tokenized once, for the run too
            began = time.monotonic()
            setup = set_up(config, trust_remote_code=self.trust_remote_code, say=_unsaid)
            self._planner = Planner(Subject.of(setup))
            self.set_up_seconds = time.monotonic() - began
        found = self._planner.plan(config, with_time=with_time)
        if found.memory is None or (with_time and found.time is None):
            raise UnforeseenError("; ".join(found.remarks))
        seconds = found.time.seconds_per_step if found.time is not None else 0.0
        return Prediction(found.memory.peak - found.memory.fixed, seconds)


def _unsaid(remark: str) -> None:
    """Remarks are made when the run is set up."""


def _timing(key: str) -> bool:
    return key.endswith(("_runtime", "_per_second"))


def _stem(data: str) -> str:
    """What a run on some data is called: as the file, or as the folder where a pattern leaves nothing of its name."""
    for part in reversed(Path(data.split("#")[-1].split(":")[-1]).parts):
        whole = part.split(".")[0].strip("/")
        if name := re.split(r"[*?[]", whole)[0].rstrip("-_") if glob.has_magic(whole) else whole:
            return name
    return "data"


def _nested(choices: tuple[Choice, ...]) -> dict[str, Any]:
    """Choices as a config."""
    raw: dict[str, Any] = {}
    for choice in choices:
        section, _, key = choice.key.partition(".")
        if key:
            raw.setdefault(section, {})[key] = choice.value
        else:
            raw[section] = choice.value
    return raw


def config_text(choices: tuple[Choice, ...], head: list[str]) -> str:
    """Choices as YAML, each under its reason."""
    parts = [commented(head)]
    by_section: dict[str, list[Choice]] = {}
    for choice in choices:
        by_section.setdefault(choice.key.partition(".")[0], []).append(choice)
    for section, listed in by_section.items():
        indent = "  " if section in SECTIONS else ""
        if indent:
            parts.append(f"{section}:\n")
        for choice in listed:
            name = choice.key.rpartition(".")[2]
            reason = commented([choice.reason]).replace("\n#", f"\n{indent}#")
            parts.append(f"{indent}{reason}{indent}{name}: {flow(choice.value)}\n")
    return "".join(parts)
