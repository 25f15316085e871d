"""Multiple-choice benchmarks on local files, answered by likelihood: which of the letters the model finds likeliest.

A benchmark is a folder with a folder for each split (dev, val, test), a CSV file for each subject in it, as MMLU, C-Eval and
CMMLU are published: `SUBJECT_SPLIT.csv` or `SUBJECT.csv`, without a header (question, choices, answer) or with one. Subjects
belong to categories where `mapping.json` or `subject_mapping.json` says so, or where the subjects are MMLU's own.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.records import Origin
from luthier.foundation.errors import DataError

SPLITS = ("dev", "val", "test")
MAPPINGS = ("mapping.json", "subject_mapping.json")
LETTERS = "ABCDEFGHIJ"
FEWEST_COLUMNS = 4  # a question, two choices, the answer
CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its choices; `answer` is the right one's number."""

    text: str
    choices: tuple[str, ...]
    answer: int
    origin: Origin


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject's questions, and those with their answers that are shown before."""

    name: str
    category: str
    questions: Sequence[Question]
    shots: Sequence[Question]


def load_benchmark(folder: Path, split: str, shots: int, subjects: Sequence[str] = ()) -> list[Subject]:
    """The subjects of a benchmark.

    Args:
        shots: examples from dev, at most so many as it has.
        subjects: only these; empty: all.

    Raises:
        DataError: no such folder or subject, rows that can't be read, a split without answers.
    """
    if not (folder / split).is_dir():
        found = [name for name in SPLITS if (folder / name).is_dir()]
        raise DataError(
            f"{folder} has no folder {split!r} (found: {', '.join(found) or 'none of dev, val and test'}).",
            "A benchmark's folder holds dev/, val/ or test/ with a CSV file for each subject; --split chooses one.",
        )
    files = files_of(folder, split)
    unknown = sorted(set(subjects) - files.keys())
    if unknown or not files:
        raise DataError(
            f"{folder / split} has no subject {', '.join(unknown)}."
            if unknown
            else f"{folder / split} has no CSV file.",
            f"It has: {', '.join(files)}." if files else "Each subject is a CSV file there.",
        )
    if shots and split == "dev":
        raise DataError(
            "the examples are dev's own questions: with --split dev a question would be shown with its answer.",
            "Set --shots 0, or take another split.",
        )
    if shots and not (folder / "dev").is_dir():
        raise DataError(f"{folder} has no folder dev to take {shots} examples from.", "Set --shots 0.")
    examples = files_of(folder, "dev") if shots else {}
    categories = categories_of(folder)
    found_subjects = []
    for name, path in files.items():
        if subjects and name not in subjects:
            continue
        shown = read_questions(examples[name])[:shots] if name in examples else []
        found_subjects.append(Subject(name, categories.get(name, ""), read_questions(path), shown))
    return found_subjects


def files_of(folder: Path, split: str) -> dict[str, Path]:
    """A split's files by subject."""
    paths = sorted((folder / split).glob("*.csv"))
    return {path.stem.removesuffix(f"_{split}"): path for path in paths}


def categories_of(folder: Path) -> dict[str, str]:
    """Subjects' categories: what a mapping beside the splits says, before MMLU's own.

    LLaMA-Factory's mapping.json has {subject: {"category": ...}}, C-Eval's subject_mapping.json {subject: [..., category]}.
    """
    known = {name: category for category, names in MMLU.items() for name in names.split()}
    for path in (folder / name for name in MAPPINGS if (folder / name).is_file()):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            for name, entry in values.items():
                known[name] = str(entry["category"] if isinstance(entry, dict) else entry[-1])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is no mapping of subjects: {type(error).__name__}: {error}.",
                'It should hold {"subject": {"category": "name"}}, or be removed.',
            ) from error
    return known


def read_questions(path: Path) -> list[Question]:
    """The questions of a file.

    Raises:
        DataError: with file and row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read: {error}.", "It should be CSV in UTF-8.") from error
    columns, start = _columns(rows, path)
    found = []
    for number, row in enumerate(rows[start:], start=start + 1):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(columns):
            raise DataError(f"{path}, row {number} has {len(row)} columns, {max(columns) + 1} are needed.", "Mend it.")
        question, *choices, answer = (row[place].strip() for place in columns)
        if answer not in tuple(LETTERS[: len(choices)]):
            raise DataError(
                f"{path}, row {number} has the answer {answer!r}, which is none of {', '.join(LETTERS[: len(choices)])}.",
                "Answers are letters. (A published test split may have none: take --split val.)",
            )
        found.append(Question(question, tuple(choices), LETTERS.index(answer), Origin(str(path), number)))
    if not found:
        raise DataError(f"{path} has no question.", "Remove the file, or fill it.")
    return found


def _columns(rows: Sequence[Sequence[str]], path: Path) -> tuple[list[int], int]:
    """Where question, choices and answer stand, and the first row of questions."""
    if not rows:
        raise DataError(f"{path} is empty.", "Remove the file, or fill it.")
    names = [name.strip().lower() for name in rows[0]]
    if "question" not in names:
        if len(names) < FEWEST_COLUMNS:
            raise DataError(
                f"{path}, row 1 has {len(names)} columns, {FEWEST_COLUMNS} are needed.",
                "They should be a question, its choices and the answer's letter.",
            )
        return list(range(len(names))), 0
    choices = [letter.lower() for letter in LETTERS if letter.lower() in names]
    if "answer" not in names or len(choices) < 2:
        raise DataError(
            f"{path} has the columns {', '.join(rows[0])}, without answers or choices.",
            "They should be question, A, B, ... and answer. (A published test split may have no answers: take --split val.)",
        )
    return [names.index(name) for name in ("question", *choices, "answer")], 1


def prompt_of(subject: Subject, question: Question, shots: Sequence[Question]) -> tuple[str, list[str]]:
    """What is asked, and the continuations that are compared: MMLU's wording, or in Chinese C-Eval's."""
    chinese = CHINESE.search(question.text) is not None
    name = subject.name.replace("_", " ")
    head = (
        f"以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。"
        if chinese
        else (f"The following are multiple choice questions (with answers) about {name}.")
    )
    asked = "答案：" if chinese else "Answer:"
    space = "" if chinese else " "

    def shown(one: Question, answer: str) -> str:
        choices = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, one.choices, strict=False))
        return f"{one.text}{choices}\n{asked}{answer}"

    before = [shown(one, f"{space}{LETTERS[one.answer]}") for one in shots]
    prompt = "\n\n".join([head, *before, shown(question, "")])
    return prompt, [f"{space}{letter}" for letter in LETTERS[: len(question.choices)]]


def encoded(
    subject: Subject, question: Question, tokenize: Callable[[str], list[int]], longest: int | None
) -> tuple[TokenizedExample, int]:
    """A question as one example, each choice a sequence whose last tokens are read; and how many shots found room.

    Raises:
        DataError: it is too long without any.
    """
    for count in range(len(subject.shots), -1, -1):
        prompt, answers = prompt_of(subject, question, subject.shots[:count])
        bare = tokenize(prompt)
        whole = [tokenize(prompt + answer) for answer in answers]
        length = max(map(len, whole))
        if longest is None or length <= longest:
            break
    else:
        raise DataError(
            f"{question.origin} has {length:,} tokens without any example, and the model knows positions up to {longest:,}.",
            "Leave it out.",
        )
    # a tokenizer may join the prompt's end with the answer; what all of them share is context
    same = min(_common(bare, ids) for ids in whole)
    sequences = tuple(
        TokenSequence(tuple(ids), tuple(float(place >= same and place > 0) for place in range(len(ids))))
        for ids in whole
    )
    return TokenizedExample(sequences, question.origin, length), count


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


# https://github.com/hendrycks/test: the four categories of its 57 subjects
MMLU: Mapping[str, str] = {
    "STEM": "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics "
    "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics "
    "high_school_statistics machine_learning",
    "humanities": "formal_logic high_school_european_history high_school_us_history high_school_world_history "
    "international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory "
    "professional_law world_religions",
    "social sciences": "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
    "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
    "security_studies sociology us_foreign_policy",
    "other": "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
    "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology",
}
