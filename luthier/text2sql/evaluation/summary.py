"""The figures of an evaluation: by hardness, by part of the query, by turn of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.text2sql.evaluation.efficiency import efficiency_score, rewarded_score
from luthier.text2sql.evaluation.evaluating import Item
from luthier.text2sql.evaluation.exact_match import PARTS
from luthier.text2sql.evaluation.hardness import LEVELS

if TYPE_CHECKING:
    from rich.console import Console

BIRD_LEVELS = ("simple", "moderate", "challenging")
TURNS = ("turn 1", "turn 2", "turn 3", "turn 4", "turn > 4")


def summarize(items: Sequence[Item], benchmark: str, conversations: bool) -> dict[str, Any]:
    """Shares from 0 to 1.

    `levels`: by hardness, count, exact and execution, Spider's four always; `partial` (Spider): accuracy, recall and F1 of
    every part by hardness, as the
    official script reckons them; `turns` and `conversations` (CoSQL, SParC): by turn, and the share of conversations in which every
    turn is right; `ves` and `r_ves` (BIRD, percent) where queries were timed.
    """
    there = {item.verdict.hardness for item in items}
    always = LEVELS if benchmark == "spider" else ()
    levels = [level for level in (*LEVELS, *BIRD_LEVELS) if level in there or level in always]
    levels += sorted(there - {*levels})
    groups = {level: [item for item in items if item.verdict.hardness == level] for level in levels}
    groups["all"] = list(items)
    by_level = {level: _shares(members) for level, members in groups.items()}
    summary: dict[str, Any] = {"benchmark": benchmark, **_shares(items), "levels": by_level}
    if benchmark == "spider":
        summary["partial"] = partial_scores(groups)
    if conversations:
        summary["turns"] = {
            name: _shares(found) for name in TURNS if (found := [item for item in items if turn_name(item) == name])
        }
        summary["conversations"] = _conversations(items)
    if items and items[0].verdict.time_ratio is not None:
        ratios = [item.verdict.time_ratio or 0.0 for item in items]
        summary["ves"], summary["r_ves"] = efficiency_score(ratios), rewarded_score(ratios)
    return summary


def turn_name(item: Item) -> str:
    """`turn 1` to `turn 4`, then `turn > 4`."""
    return TURNS[min(item.gold.turn, len(TURNS)) - 1]


def _shares(items: Sequence[Item]) -> dict[str, Any]:
    count = len(items)
    exact = None if any(item.verdict.exact is None for item in items) else _share(item.verdict.exact for item in items)
    return {"count": count, "exact": exact, "execution": _share(item.verdict.execution for item in items)}


def _share(values: Iterable[int | None]) -> float:
    found = [value or 0 for value in values]
    return sum(found) / len(found) if found else 0.0


def _conversations(items: Sequence[Item]) -> dict[str, Any]:
    """Those that are right in every turn."""
    sessions: dict[int, list[Item]] = {}
    for item in items:
        sessions.setdefault(item.gold.session, []).append(item)
    return {
        "count": len(sessions),
        "exact": _share(all(item.verdict.exact for item in turns) for turns in sessions.values()),
        "execution": _share(all(item.verdict.execution for item in turns) for turns in sessions.values()),
    }


def partial_scores(groups: dict[str, list[Item]]) -> dict[str, dict[str, dict[str, float]]]:
    """accuracy, recall and F1 -> part -> level.

    A part's accuracy is over the predictions that have it, its recall over the gold queries that do; F1 is made of the two, and 1
    where both are 0, but for a level without items, of which everything is 0.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {"accuracy": {}, "recall": {}, "f1": {}}
    for part in PARTS:
        for level, items in groups.items():
            found = [item.verdict.parts[part] for item in items if part in item.verdict.parts]
            accuracy = _share(match.matched for match in found if match.predicted)
            recall = _share(match.matched for match in found if match.labelled)
            f1 = 2 * accuracy * recall / (accuracy + recall) if accuracy + recall else float(bool(items))
            for name, value in (("accuracy", accuracy), ("recall", recall), ("f1", f1)):
                scores[name].setdefault(part, {})[level] = value
    return scores


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Tables for the terminal."""
    from rich import box
    from rich.table import Table

    def table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, Callable[[str], str]]]) -> None:
        drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        drawn.add_column()
        for column in columns:
            drawn.add_column(column, justify="right")
        for name, value in rows:
            drawn.add_row(name, *map(value, columns))
        console.print(drawn)

    def rows(groups: dict[str, Any]) -> list[tuple[str, Callable[[str], str]]]:
        measures = [
            name for name in ("exact", "execution") if any(group[name] is not None for group in groups.values())
        ]
        shares = [(name, lambda column, name=name: f"{groups[column][name]:.3f}") for name in measures]
        return [("count", lambda column: f"{groups[column]['count']:,}"), *shares]

    table("", list(summary["levels"]), rows(summary["levels"]))
    if "turns" in summary:
        table("by turn", list(summary["turns"]), rows(summary["turns"]))
        whole = {"conversations": summary["conversations"]}
        table("right in every turn", list(whole), rows(whole))
    if "ves" in summary:
        console.print(f"efficiency (VES): {summary['ves']:.2f}, rewarded in steps (R-VES): {summary['r_ves']:.2f}")
    for name, parts in summary.get("partial", {}).items():
        drawn = [(part, lambda level, values=values: f"{values[level]:.3f}") for part, values in parts.items()]
        table(f"partial match: {name}", list(summary["levels"]), drawn)
