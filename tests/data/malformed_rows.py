"""Rows that can't be used, in files that can be read: `ROWS[name] = (format, row, what the reason must say)`."""

from __future__ import annotations

from typing import Any

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}

# a good row of every format, to stand around the bad ones
GOOD: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "q", "output": "a"},
    "alpaca_pair": {"instruction": "q", "chosen": "a", "rejected": "b"},
    "belle": {"instruction": "Human: q\nAssistant:", "output": "a"},
    "classification": {"text": "q", "label": "good"},
    "kto": {"prompt": "q", "completion": "a", "label": True},
    "openai": {"messages": [Q, A]},
    "openai_pair": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "self_instruct": {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "sharegpt_pair": {"conversations": [HUMAN], "chosen": GPT, "rejected": {**GPT, "value": "b"}},
    "text": {"text": "a document"},
    "text_to_sql": {"db_id": "d", "instruction": "q", "input": "", "output": "SELECT 1"},
}


def _messages(*turns: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(turns), **fields}


def _calls(calls: Any, **fields: Any) -> dict[str, Any]:
    return _messages(
        Q, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "1"}, A, **fields
    )


CALL = {"function": {"name": "f", "arguments": {}}}
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    # turns
    "no turns": ("openai", _messages(), r"has no assistant turn to learn from \(found: no turns\)"),
    "only a system prompt": ("openai", _messages({"role": "system", "content": "s"}), r"has no assistant turn to learn from"),
    "only a question": ("openai", _messages(Q), r"has no assistant turn to learn from \(found: user\)"),
    "two questions in a row": ("openai", _messages(Q, Q, A), r"turn 2 is of user and follows a turn of user; turns must alternate"),
    "two answers in a row": ("openai", _messages(Q, A, A), r"turn 3 is of assistant and follows a turn of assistant"),
    "an answer first": ("openai", _messages(A, Q, A), r"turn 1 is of assistant and comes first"),
    "a system prompt in the middle": ("openai", _messages(Q, A, {"role": "system", "content": "s"}, Q, A), r"turn 3 is of system and follows"),
    "two system prompts": ("openai", _messages({"role": "system", "content": "s"}, Q, A, system="t"), r"has two system prompts"),
    "an empty question": ("openai", _messages({"role": "user", "content": " \n"}, A), r"turn 1 \(user\) is empty"),
    "an unknown role": ("openai", _messages({"role": "narrator", "content": "q"}, A), r"messages\[0\] has the unknown role 'narrator'; known: user"),
    "a role that is null": ("openai", _messages({"role": None, "content": "q"}, A), r"messages\[0\] has the unknown role None"),
    "a role that is a list": ("openai", _messages({"role": ["user"], "content": "q"}, A), r"messages\[0\] has the unknown role \['user'\]"),
    "a role in capitals": ("openai", _messages({"role": "User", "content": "q"}, A), r"messages\[0\] has the unknown role 'User'"),
    "an unknown speaker": ("sharegpt", {"conversations": [{"from": "bing", "value": "q"}, GPT]}, r"conversations\[0\] has the unknown from 'bing'"),
    "a turn that is text": ("openai", _messages("q", A), r"messages\[0\] is str, not an object with 'role' and 'content'"),
    "a turn that is null": ("sharegpt", {"conversations": [HUMAN, None]}, r"conversations\[1\] is NoneType, not an object"),
    "a turn in a list": ("openai", _messages([Q], A), r"messages\[0\] is list, not an object"),
    "a turn without a role": ("openai", _messages({"content": "q"}, A), r"messages\[0\] lacks 'role'; fields found: content"),
    "a turn without content": ("openai", _messages(Q, {"role": "assistant"}), r"messages\[1\] lacks 'content'; fields found: role"),
    "a turn with nothing": ("openai", _messages({}, A), r"messages\[0\] lacks 'role'; fields found: none"),
    "turns as text": ("openai", {"messages": "q"}, r"the field 'messages' is str, not a list of turns"),
    "turns that are null": ("openai", {"messages": None}, r"the field 'messages' is NoneType, not a list of turns"),
    "turns as an object": ("sharegpt", {"conversations": {"from": "human"}}, r"the field 'conversations' is dict, not a list"),
    "content that is null": ("openai", _messages({"role": "user", "content": None}, A), r"messages\[0\]\.content is NoneType None, not text"),
    "content that is a number": ("openai", _messages(Q, {"role": "assistant", "content": 5}), r"messages\[1\]\.content is int 5, not text"),
    "content that is not a number": ("openai", _messages(Q, {"role": "assistant", "content": float("nan")}), r"messages\[1\]\.content is float nan"),
    "an image": ("openai", _messages({"role": "user", "content": [{"type": "image_url"}]}, A), r"messages\[0\]\.content\[0\] is a part of type 'image_url'; only text"),
    "a text part of null": ("openai", _messages({"role": "user", "content": [{"type": "text", "text": None}]}, A), r"content\[0\]\.text is NoneType"),
    "nested nulls": ("openai", _messages({"role": "user", "content": [None]}, A), r"messages\[0\]\.content\[0\] is a part of type 'NoneType'"),
    "a lone surrogate": ("openai", _messages(Q, {"role": "assistant", "content": "a\ud800"}), r"messages\[1\]\.content holds half of a surrogate pair \(U\+D800 at character 1\)"),
    "rows of another format": ("openai", {"instruction": "q", "output": "a"}, r"lacks the field 'messages' .*fields found: instruction, output"),
    # weights
    "a weight below 0": ("openai", _messages(Q, {**A, "weight": -1}), r"messages\[1\]\.weight is -1; it must be a number from 0 to 10,000"),
    "a weight of text": ("openai", _messages(Q, {**A, "weight": "1"}), r"messages\[1\]\.weight is '1'"),
    "an infinite weight": ("openai", _messages(Q, {**A, "weight": float("inf")}), r"messages\[1\]\.weight is inf"),
    "a weight of hundreds of digits": ("openai", _messages(Q, {**A, "weight": 10**400}), r"messages\[1\]\.weight is 1000.*; it must be a number"),
    "train as text": ("openai", _messages(Q, {**A, "train": "no"}), r"messages\[1\]\.train is 'no'; it must be true or false"),
    "weight against train": ("openai", _messages(Q, {**A, "weight": 0, "train": True}), r"contradict each other"),
    "a question to be trained": ("openai", _messages({**Q, "train": True}, A), r"messages\[0\] is of user and asks to be trained"),
    # tools
    "tools as broken JSON": ("openai", _messages(Q, A, tools="[{"), r"the field 'tools' is broken JSON \(.* at character \d+\)"),
    "tools nested too deeply": ("openai", _messages(Q, A, tools="[" * 100_000), r"the field 'tools' is broken JSON \(.*recursion"),
    "tools with a huge number": ("openai", _messages(Q, A, tools='[{"name": ' + "9" * 5000 + "}]"), r"the field 'tools' is broken JSON"),
    "a tool without a name": ("openai", _messages(Q, A, tools=[{"description": "d"}]), r"the field 'tools'\[0\] names no function"),
    "a tool that is text": ("openai", _messages(Q, A, tools=["f"]), r"the field 'tools'\[0\] is str 'f', not a tool definition"),
    "tools of numbers": ("sharegpt", {"conversations": [HUMAN, GPT], "tools": 5}, r"the field 'tools' is int 5, not a list of tool definitions"),
    "a call that is text": ("openai", _calls("f()"), r"messages\[1\]\.tool_calls is broken JSON"),
    "a call without a name": ("openai", _calls([{"function": {"arguments": {}}}]), r"messages\[1\]\.tool_calls\[0\] is dict .*, not a call"),
    "arguments of broken JSON": ("openai", _calls([{"function": {"name": "f", "arguments": "{x"}}]), r"tool_calls\[0\]\.arguments is broken JSON"),
    "arguments as a list": ("openai", _calls([{"function": {"name": "f", "arguments": [1]}}]), r"tool_calls\[0\]\.arguments is list \[1\], not an object"),
    "a question that calls": ("openai", _messages({**Q, "tool_calls": [CALL]}, A), r"messages\[0\] is of user and has tool calls"),
    "a call that nothing answers": ("openai", _messages(Q, {**A, "tool_calls": [CALL]}, Q, A), r"turn 3 is of user and follows a turn of assistant that calls tools"),
    "a result before any call": ("openai", _messages({"role": "tool", "content": "1"}, Q, A), r"turn 1 is of tool and comes first"),
    "a function_call of prose": ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "call f"}]}, r"conversations\[1\]\.value is broken JSON"),
    # instructions
    "an instruction of null": ("alpaca", {"instruction": None, "output": "a"}, r"the field 'instruction' is NoneType None, not text"),
    "an output of nested nulls": ("alpaca", {"instruction": "q", "output": [None]}, r"the field 'output' is list \[None\], not text"),
    "an output that is missing": ("alpaca", {"instruction": "q"}, r"lacks the field 'output'"),
    "an output that is true": ("alpaca", {"instruction": "q", "output": True}, r"the field 'output' is bool True, not text"),
    "an output in a surrogate": ("alpaca", {"instruction": "q", "output": "\udfff"}, r"the field 'output' holds half of a surrogate pair"),
    "an empty instruction": ("alpaca", {"instruction": "", "output": "a"}, r"turn 1 \(user\) is empty"),
    "an input that is a list": ("alpaca", {"instruction": "q", "input": ["i"], "output": "a"}, r"the field 'input' is list"),
    "a system prompt of numbers": ("alpaca", {"instruction": "q", "output": "a", "system": 1}, r"the field 'system' is int 1, not text"),
    "a history of text": ("alpaca", {"instruction": "q", "output": "a", "history": "q: a"}, r"the field 'history' is str, not a list of \[question, answer\]"),
    "a history of three": ("alpaca", {"instruction": "q", "output": "a", "history": [["q", "a", "x"]]}, r"history\[0\] is .*, not a pair"),
    "a history of null": ("alpaca", {"instruction": "q", "output": "a", "history": [["q", None]]}, r"history\[0\]\[1\] is NoneType"),
    "a dialogue that does not end": ("belle", {"instruction": "Human: q\nAssistant: a", "output": "b"}, r"does not end with 'Assistant:'"),
    "a dialogue of nobody": ("belle", {"instruction": "q", "output": "a"}, r"the field 'instruction' begins with 'q', not with 'Human:'"),
    "a dialogue with input": ("belle", {**GOOD["belle"], "input": "x"}, r"the field 'input' is not empty"),
    "no instances": ("self_instruct", {"instruction": "q", "instances": []}, r"the field 'instances' is \[\], not a list of inputs"),
    "an instance without output": ("self_instruct", {"instruction": "q", "instances": [{"input": "i"}]}, r"instances\[0\] lacks 'output'"),
    "an instance of text": ("self_instruct", {"instruction": "q", "instances": ["a"]}, r"instances\[0\] is str, not an object"),
    "a database of nothing": ("text_to_sql", {**GOOD["text_to_sql"], "db_id": ""}, r"the field 'db_id' is empty"),
    "a prompt of numbers": ("prompt_completion", {"prompt": 5, "completion": "a"}, r"the field 'prompt' is int 5, not text"),
    "a completion that ends with a question": ("prompt_completion", {"prompt": "q", "completion": [Q]}, r"ends with user, not with an assistant turn"),
    "a completion of no turns": ("prompt_completion", {"prompt": "q", "completion": []}, r"ends with nothing, not with an assistant"),
    # preferences and judgements
    "an answer that is null": ("alpaca_pair", {"instruction": "q", "chosen": None, "rejected": "b"}, r"the field 'chosen' is NoneType, not text, a turn or a list"),
    "an answer that is missing": ("openai_pair", {"prompt": "q", "chosen": "a"}, r"lacks the field 'rejected'"),
    "an answer of the user": ("sharegpt_pair", {"conversations": [HUMAN], "chosen": HUMAN, "rejected": GPT}, r"the field 'chosen' ends with user"),
    "a prompt that ends with an answer": ("openai_pair", {"prompt": [Q, A], "chosen": "a", "rejected": "b"}, r"the prompt ends with assistant"),
    "no prompt": ("openai_pair", {"prompt": None, "chosen": "a", "rejected": "b"}, r"has no 'prompt', and 'chosen' and 'rejected' begin with no turn in common"),
    "a judgement of 2": ("kto", {**GOOD["kto"], "label": 2}, r"the field 'label' is int 2; it must be true or false"),
    "a judgement of yes": ("kto", {**GOOD["kto"], "label": "yes"}, r"the field 'label' is str 'yes'; it must be true or false"),
    "a judgement of 0.5": ("kto", {**GOOD["kto"], "label": 0.5}, r"the field 'label' is float 0.5; it must be true or false"),
    "no judgement": ("kto", {**GOOD["kto"], "label": None}, r"the field 'label' is NoneType None"),
    "nothing to judge": ("kto", {"label": True}, r"has neither 'messages' nor 'prompt'"),
    "a label of a list": ("classification", {"text": "q", "label": [None]}, r"an item of the field 'label' is NoneType None; it must be a class name or a number"),
    "a label that is empty": ("classification", {"text": "q", "label": " "}, r"the field 'label' is str ' '"),
    "a label that is not a number": ("classification", {"text": "q", "label": float("nan")}, r"the field 'label' is float nan"),
    "an infinite label": ("classification", {"text": "q", "label": float("inf")}, r"the field 'label' is float inf"),
    "a label of hundreds of digits": ("classification", {"text": "q", "label": 10**400}, r"the field 'label' is int 1000.*; it must be"),
    "a text that is missing": ("classification", {"label": 1}, r"lacks the field 'text'"),
    "a text that is empty": ("text", {"text": " \n"}, r"the field 'text' is empty"),
    "a text that is null": ("text", {"text": None}, r"the field 'text' is NoneType None, not text"),
    "a text that is an object": ("text", {"text": {"a": {"b": None}}}, r"the field 'text' is dict .*, not text"),
    "a text of a thousand numbers": ("text", {"text": list(range(1000))}, r"the field 'text' is list \[0, 1, .*\.\.\.\], not text"),
}  # fmt: skip
