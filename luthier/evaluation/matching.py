"""Answers in a file beside the rows that they answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.evaluation.engine import encodable
from luthier.evaluation.prompts import Prompt
from luthier.foundation.errors import UserError

# how an answer ends that is none, and why
UNANSWERED = {"error": "the engine could not answer them", "prompt_too_long": "their prompts are too long"}
PROMPT_HASH = "prompt_sha256"  # in a row of an evaluation, by which another evaluation knows the row


def matched(
    lines: Sequence[Mapping[str, Any]], prompts: Sequence[tuple[str, Prompt]], where: str
) -> list[dict[str, Any]]:
    """Lines that `predict` wrote, with the rows they answer; of lines alone, their own labels are the references.

    Raises:
        UserError: they don't fit, or have no reference.
    """
    if not lines:
        raise UserError(f"{where} is empty.", "Name a file that `luthier predict --out` wrote.")
    if prompts and len(lines) != len(prompts):
        raise UserError(
            f"{where} has {len(lines):,} lines for {len(prompts):,} rows of --data.",
            "Predict again, or name the same rows.",
        )
    _check_order(lines, bool(prompts), where)
    rows = []
    without: list[int] = []
    for place, line in enumerate(lines):
        prediction = line.get("prediction")
        if not isinstance(prediction, str):
            raise UserError(
                f"{where}, line {place + 1} has no text under `prediction`.", "`luthier predict` writes it."
            )
        name, prompt = prompts[place] if prompts else (where, None)
        reference = prompt.label if prompt is not None else line.get("label")
        if prompt is not None and line.get("label", reference) != reference:
            raise UserError(
                f"{where}, line {place + 1} has the label {str(line['label'])[:60]!r}, but row {place + 1} of --data has "
                f"{str(reference)[:60]!r}.",
                "Name the rows that were predicted, in their order.",
            )
        if not isinstance(reference, str):
            without.append(place + 1)
            continue
        origin = prompt.origin if prompt is not None else None
        rows.append(
            {
                "source": name,
                "file": origin.path if origin is not None else where,
                "row": origin.row if origin is not None else place + 1,
                **_asked(prompt.request.as_dict() if prompt is not None else line, rendered=prompt is None),
                "prediction": encodable(prediction),
                "reference": encodable(reference),
                "finish_reason": line.get("finish_reason"),
                **({"reason": line["reason"]} if line.get("reason") else {}),
            }
        )
    refuse_without_reference(without, len(lines))
    return rows


def told_unanswered(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Remarks on rows that have no answer and are measured as if it were empty."""
    remarks = []
    for finish, why in UNANSWERED.items():
        found = [row for row in rows if row.get("finish_reason") == finish]
        if found:
            said = f", such as: {found[0]['reason']}" if found[0].get("reason") else ""
            remarks.append(f"{len(found):,} of {len(rows):,} rows have no answer and count as empty: {why}{said}")
    return remarks


def refuse_without_reference(numbers: Sequence[int], count: int) -> None:
    """Raise UserError where some of `count` rows have no right answer."""
    if numbers:
        shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        raise UserError(
            f"{len(numbers):,} of {count:,} rows have no right answer to compare with (rows {shown}).",
            "Leave them out of --data, or take the loss alone, without --generate and --metric.",
        )


def _check_order(lines: Sequence[Mapping[str, Any]], whole: bool, where: str) -> None:
    """Raise UserError where lines say with `index` that one row stands twice; or, where they are all of `--data`, that they
    are in another order."""
    places: dict[int, int] = {}
    for place, line in enumerate(lines):
        index = line.get("index")
        if not isinstance(index, int):
            continue
        if index in places or (whole and index != place):
            before = f"as line {places[index] + 1} has" if index in places else f"where {place} should be"
            raise UserError(
                f"{where}, line {place + 1} has the index {index}, {before}.",
                "Each row stands once, in the order of the rows that were predicted.",
            )
        places[index] = place


def _asked(request: Mapping[str, Any], rendered: bool) -> dict[str, str]:
    """A row's prompt, for metrics that read it, and its hash; of answers that were written without prompts, no hash.

    Args:
        rendered: a prompt that is text may be what one model was shown, with its template, so it tells no rows apart.
    """
    found = hash_of(request) if request.get("messages") or not rendered else ""
    return {"prompt": asked_text(request), **({PROMPT_HASH: found} if found else {})}


def hash_of(request: Mapping[str, Any]) -> str:
    """The hash of a prompt as `Request.as_dict` gives it, be it among other values; empty where there is none."""
    asked = {key: request[key] for key in ("prompt", "messages", "tools") if request.get(key)}
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest() if asked else ""


def asked_text(request: Mapping[str, Any]) -> str:
    """What was asked, as text: the user's turn; of several turns the conversation, each with its role before it; or the text
    to continue."""
    turns = request.get("messages") or ()
    if not turns:
        return str(request.get("prompt", ""))
    if len(turns) == 1:
        return _turn_text(turns[0])
    return "\n\n".join(f"{turn.get('role', '')}: {_turn_text(turn)}" for turn in turns)


def _turn_text(turn: Mapping[str, Any]) -> str:
    calls = turn.get("tool_calls")
    said = [str(turn.get("content") or ""), json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n".join(filter(None, said))
