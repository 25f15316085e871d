"""What the families make of a few conversations, trained spans between ⟦ and ⟧: never from our own code.

FAMILIES. The conversation is that of llama.cpp's tests/test-chat-template.cpp. Each template file's `source:` names where
its strings come from: the expected output of that test (with this tokenizer's BOS) for phi4, phi3, command-r, deepseek2,
gemma3, chatglm3, glm4, mistral and mixtral, cut short for one and two turns; the text of the family's own or the named
template for the rest.
What differs from the source is what a model must be taught in order to stop:

- chatglm3, glm4: the token that opens the next question ends an answer; the last answer gets it too.
- baichuan2: the same, but EOS ends the last answer.
- falcon: EOS is written before the line break that ends an answer.
- deepseek-r1: the family's own template drops the thought of the last answer as well; ours keeps it, to train it.

EXPECTED. The strings follow the families' own published templates and fixtures, never our code:

- ChatML: the template and its expected output in llama.cpp, tests/test-chat-template.cpp, case
  "teknium/OpenHermes-2.5-Mistral-7B" (nothing is trimmed).
- Llama 2: `chat_template` in tokenizer_config.json of meta-llama/Llama-2-7b-chat-hf (contents are stripped, the answer
  stands between two spaces, every question starts with BOS).
- Llama 3: `chat_template` in tokenizer_config.json of meta-llama/Meta-Llama-3-8B-Instruct, quoted with its expected output
  in the tests of llama.cpp (contents are trimmed).
- Qwen2.5: `chat_template` in tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct (ChatML with a default system prompt).
- Alpaca: PROMPT_DICT["prompt_no_input"] and `targets` in train.py of tatsu-lab/stanford_alpaca (the answer follows
  "### Response:" at once and ends in EOS). It has one turn and no system prompt; that further turns repeat the headings
  and a system prompt replaces the header is our choice.
- SmolLM2: the chat template inside the default model's GGUF, as the model's folder gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.data.records import Message

SYSTEM = Message("system", "You are a helpful assistant")
TURNS = [
    Message("user", "Hello"),
    Message("assistant", "Hi there"),
    Message("user", "Who are you"),
    Message("assistant", "   I am an assistant   "),
]
QUESTION = Message("user", "Another question")
ELSEWHERE = {"alpaca", "chatml", "llama2", "llama3"}  # in EXPECTED
WITHOUT_SYSTEM = {"falcon", "gemma"}
# these write the last answer, or what follows it, in another way than before, so without tags turns can't be told apart
LAST_IS_SPECIAL = {"baichuan2", "deepseek-r1", "internlm2", "qwen3", "qwen3-nothink"}
WITH_TOOLS = {"internlm2", "llama3.1", "llama4", "mistral", "qwen2.5", "qwen3", "qwen3-nothink"}


@dataclass(frozen=True)
class Expected:
    """One turn; a system prompt (where the family has one) and two turns; the same with another question, as a prompt."""

    one: str
    two: str
    prompt: str


CHATML_ONE = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧"
CHATML_TWO = (
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n"
    "<|im_start|>assistant\n⟦   I am an assistant   <|im_end|>⟧"
)
CHATML_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n"
    "<|im_start|>assistant\n   I am an assistant   <|im_end|>\n"
    "<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>assistant\n"
)
FAMILIES: dict[str, Expected] = {
    "baichuan2": Expected(
        one="<reserved_106>Hello<reserved_107>⟦Hi there</s>⟧",
        two=(
            "You are a helpful assistant<reserved_106>Hello<reserved_107>⟦Hi there<reserved_106>⟧"
            "Who are you<reserved_107>⟦   I am an assistant   </s>⟧"
        ),
        prompt=(
            "You are a helpful assistant<reserved_106>Hello<reserved_107>Hi there<reserved_106>Who are you<reserved_107>   I am an assistant   <reserved_106>Another question<reserved_107>"
        ),
    ),
    "chatglm3": Expected(
        one="[gMASK]sop<|user|>\n Hello<|assistant|>⟦\n Hi there<|user|>⟧",
        two=(
            "[gMASK]sop<|system|>\n You are a helpful assistant<|user|>\n Hello<|assistant|>⟦\n Hi there<|user|>⟧\n"
            " Who are you<|assistant|>⟦\n    I am an assistant   <|user|>⟧"
        ),
        prompt=(
            "[gMASK]sop<|system|>\n You are a helpful assistant<|user|>\n Hello<|assistant|>\n Hi there<|user|>\n"
            " Who are you<|assistant|>\n    I am an assistant   <|user|>\n Another question<|assistant|>"
        ),
    ),
    "command-r": Expected(
        one=(
            "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
            "<|CHATBOT_TOKEN|>⟦Hi there<|END_OF_TURN_TOKEN|>⟧"
        ),
        two=(
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            "⟦Hi there<|END_OF_TURN_TOKEN|>⟧<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦I am an assistant<|END_OF_TURN_TOKEN|>⟧"
        ),
        prompt=(
            "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            "Hi there<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>I am an assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
            "<|USER_TOKEN|>Another question<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        ),
    ),
    "deepseek-r1": Expected(
        one="<s><｜User｜>Hello<｜Assistant｜><think>\n⟦\n</think>\n\nHi there<｜end▁of▁sentence｜>⟧",
        two=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>⟦Hi there<｜end▁of▁sentence｜>⟧"
            "<｜User｜>Who are you<｜Assistant｜><think>\n⟦\n</think>\n\n   I am an assistant   <｜end▁of▁sentence｜>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜>"
            "<｜User｜>Who are you<｜Assistant｜>   I am an assistant   <｜end▁of▁sentence｜>"
            "<｜User｜>Another question<｜Assistant｜><think>\n"
        ),
    ),
    "deepseek2": Expected(
        one="<s>User: Hello\n\nAssistant:⟦ Hi there</s>⟧",
        two=(
            "<s>You are a helpful assistant\n\nUser: Hello\n\nAssistant:⟦ Hi there</s>⟧User: Who are you\n\n"
            "Assistant:⟦    I am an assistant   </s>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there</s>User: Who are you\n\n"
            "Assistant:    I am an assistant   </s>User: Another question\n\nAssistant:"
        ),
    ),
    "deepseek3": Expected(
        one="<s><｜User｜>Hello<｜Assistant｜>⟦Hi there<｜end▁of▁sentence｜>⟧",
        two=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>⟦Hi there<｜end▁of▁sentence｜>⟧"
            "<｜User｜>Who are you<｜Assistant｜>⟦   I am an assistant   <｜end▁of▁sentence｜>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there<｜end▁of▁sentence｜>"
            "<｜User｜>Who are you<｜Assistant｜>   I am an assistant   <｜end▁of▁sentence｜>"
            "<｜User｜>Another question<｜Assistant｜>"
        ),
    ),
    "default": Expected(
        one="Human: Hello</s>\nAssistant:⟦Hi there</s>⟧\n",
        two=(
            "System: You are a helpful assistant</s>\nHuman: Hello</s>\nAssistant:⟦Hi there</s>⟧\n"
            "Human: Who are you</s>\nAssistant:⟦   I am an assistant   </s>⟧\n"
        ),
        prompt=(
            "System: You are a helpful assistant</s>\nHuman: Hello</s>\nAssistant:Hi there</s>\n"
            "Human: Who are you</s>\nAssistant:   I am an assistant   </s>\nHuman: Another question</s>\nAssistant:"
        ),
    ),
    "falcon": Expected(
        one="<s>User: Hello\nAssistant:⟦ Hi there</s>⟧",
        two="<s>User: Hello\nAssistant:⟦ Hi there</s>⟧\nUser: Who are you\nAssistant:⟦    I am an assistant   </s>⟧",
        prompt=(
            "<s>User: Hello\nAssistant: Hi there</s>\nUser: Who are you\nAssistant:    I am an assistant   </s>\n"
            "User: Another question\nAssistant:"
        ),
    ),
    "gemma": Expected(
        one="<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n⟦Hi there<end_of_turn>⟧\n",
        two=(
            "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n⟦Hi there<end_of_turn>⟧\n"
            "<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n⟦I am an assistant<end_of_turn>⟧\n"
        ),
        prompt=(
            "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi there<end_of_turn>\n"
            "<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n"
            "<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n"
        ),
    ),
    "gemma3": Expected(
        one="<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n⟦Hi there<end_of_turn>⟧\n",
        two=(
            "<s><start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\n"
            "⟦Hi there<end_of_turn>⟧\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n"
            "⟦I am an assistant<end_of_turn>⟧\n"
        ),
        prompt=(
            "<s><start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\n"
            "Hi there<end_of_turn>\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\n"
            "I am an assistant<end_of_turn>\n<start_of_turn>user\nAnother question<end_of_turn>\n"
            "<start_of_turn>model\n"
        ),
    ),
    "glm4": Expected(
        one="[gMASK]<sop><|user|>\nHello<|assistant|>\n⟦Hi there<|user|>⟧",
        two=(
            "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\n⟦Hi there<|user|>⟧\n"
            "Who are you<|assistant|>\n⟦   I am an assistant   <|user|>⟧"
        ),
        prompt=(
            "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\nHi there<|user|>\n"
            "Who are you<|assistant|>\n   I am an assistant   <|user|>\nAnother question<|assistant|>\n"
        ),
    ),
    "internlm2": Expected(
        one=f"<s>{CHATML_ONE}\n</s>",
        two=f"<s>{CHATML_TWO}\n</s>",
        prompt=f"<s>{CHATML_PROMPT}",
    ),
    "llama3.1": Expected(
        one=(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
        ),
        two=(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>"
            "\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>"
            "assistant<|end_header_id|>\n\n⟦I am an assistant<|eot_id|>⟧"
        ),
        prompt=(
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>"
            "\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>"
            "assistant<|end_header_id|>\n\nI am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "Another question<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    ),
    "llama4": Expected(
        one=(
            "<s><|header_start|>user<|header_end|>\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\n"
            "⟦Hi there<|eot|>⟧"
        ),
        two=(
            "<s><|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|><|header_start|>"
            "user<|header_end|>\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\n⟦Hi there<|eot|>⟧"
            "<|header_start|>user<|header_end|>\n\nWho are you<|eot|><|header_start|>assistant<|header_end|>\n\n"
            "⟦   I am an assistant   <|eot|>⟧"
        ),
        prompt=(
            "<s><|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|><|header_start|>"
            "user<|header_end|>\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\nHi there<|eot|>"
            "<|header_start|>user<|header_end|>\n\nWho are you<|eot|><|header_start|>assistant<|header_end|>\n\n"
            "   I am an assistant   <|eot|><|header_start|>user<|header_end|>\n\nAnother question<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\n"
        ),
    ),
    "mistral": Expected(
        one="<s>[INST] Hello[/INST]⟦ Hi there</s>⟧",
        two=(
            "<s>[INST] You are a helpful assistant\n\nHello[/INST]⟦ Hi there</s>⟧"
            "[INST] Who are you[/INST]⟦ I am an assistant</s>⟧"
        ),
        prompt=(
            "<s>[INST] You are a helpful assistant\n\nHello[/INST] Hi there</s>"
            "[INST] Who are you[/INST] I am an assistant</s>[INST] Another question[/INST]"
        ),
    ),
    "mixtral": Expected(
        one="<s> [INST] Hello [/INST]⟦ Hi there</s>⟧",
        two=(
            "<s> [INST] You are a helpful assistant\n\nHello [/INST]⟦ Hi there</s>⟧"
            " [INST] Who are you [/INST]⟦    I am an assistant   </s>⟧"
        ),
        prompt=(
            "<s> [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s>"
            " [INST] Who are you [/INST]    I am an assistant   </s> [INST] Another question [/INST]"
        ),
    ),
    "phi3": Expected(
        one="<|user|>\nHello<|end|>\n<|assistant|>\n⟦Hi there<|end|>⟧\n",
        two=(
            "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n⟦Hi there<|end|>⟧"
            "\n<|user|>\nWho are you<|end|>\n<|assistant|>\n⟦   I am an assistant   <|end|>⟧\n"
        ),
        prompt=(
            "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
            "<|user|>\nWho are you<|end|>\n<|assistant|>\n   I am an assistant   <|end|>\n<|user|>\n"
            "Another question<|end|>\n<|assistant|>\n"
        ),
    ),
    "phi4": Expected(
        one="<|im_start|>user<|im_sep|>Hello<|im_end|><|im_start|>assistant<|im_sep|>⟦Hi there<|im_end|>⟧",
        two=(
            "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>"
            "Hello<|im_end|><|im_start|>assistant<|im_sep|>⟦Hi there<|im_end|>⟧<|im_start|>user<|im_sep|>"
            "Who are you<|im_end|><|im_start|>assistant<|im_sep|>⟦   I am an assistant   <|im_end|>⟧"
        ),
        prompt=(
            "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>"
            "Hello<|im_end|><|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>"
            "Who are you<|im_end|><|im_start|>assistant<|im_sep|>   I am an assistant   <|im_end|><|im_start|>"
            "user<|im_sep|>Another question<|im_end|><|im_start|>assistant<|im_sep|>"
        ),
    ),
    "qwen2.5": Expected(
        one=(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            f"{CHATML_ONE}\n"
        ),
        two=f"{CHATML_TWO}\n",
        prompt=CHATML_PROMPT,
    ),
    "qwen3": Expected(
        one="<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nHi there<|im_end|>⟧\n",
        two=CHATML_TWO.replace("⟦   I am", "⟦<think>\n\n</think>\n\n   I am") + "\n",
        prompt=CHATML_PROMPT,
    ),
    "qwen3-nothink": Expected(
        one="<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Hi there<|im_end|>⟧\n",
        two=CHATML_TWO.replace("⟦   I am", "<think>\n\n</think>\n\n⟦   I am") + "\n",
        prompt=CHATML_PROMPT + "<think>\n\n</think>\n\n",
    ),
    "smollm2": Expected(
        one=(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            f"{CHATML_ONE}\n"
        ),
        two=f"{CHATML_TWO}\n",
        prompt=CHATML_PROMPT,
    ),
    "vicuna": Expected(
        one=(
            "<s>A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
            "USER: Hello ASSISTANT:⟦ Hi there</s>⟧"
        ),
        two=(
            "<s>You are a helpful assistant USER: Hello ASSISTANT:⟦ Hi there</s>⟧"
            "USER: Who are you ASSISTANT:⟦    I am an assistant   </s>⟧"
        ),
        prompt=(
            "<s>You are a helpful assistant USER: Hello ASSISTANT: Hi there</s>"
            "USER: Who are you ASSISTANT:    I am an assistant   </s>USER: Another question ASSISTANT:"
        ),
    ),
    "xverse": Expected(
        one="Human: Hello\n\nAssistant: ⟦Hi there</s>⟧",
        two=(
            "You are a helpful assistant\n\nHuman: Hello\n\nAssistant: ⟦Hi there</s>⟧Human: Who are you\n\n"
            "Assistant: ⟦   I am an assistant   </s>⟧"
        ),
        prompt=(
            "You are a helpful assistant\n\nHuman: Hello\n\nAssistant: Hi there</s>Human: Who are you\n\n"
            "Assistant:    I am an assistant   </s>Human: Another question\n\nAssistant: "
        ),
    ),
    "yi": Expected(one=f"{CHATML_ONE}\n", two=f"{CHATML_TWO}\n", prompt=CHATML_PROMPT),
    "zephyr": Expected(
        one="<|user|>\nHello</s>\n<|assistant|>\n⟦Hi there</s>⟧\n",
        two=(
            "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\n⟦Hi there</s>⟧\n"
            "<|user|>\nWho are you</s>\n<|assistant|>\n⟦   I am an assistant   </s>⟧\n"
        ),
        prompt=(
            "<|system|>\nYou are a helpful assistant</s>\n<|user|>\nHello</s>\n<|assistant|>\nHi there</s>\n<|user|>"
            "\nWho are you</s>\n<|assistant|>\n   I am an assistant   </s>\n<|user|>\nAnother question</s>\n"
            "<|assistant|>\n"
        ),
    ),
}

TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}
TOOL_TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "3 + 4?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "tool_call_id": "call00001", "content": "7"},
    {"role": "assistant", "content": "Seven."},
]
QWEN_TALK = (
    "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": '
    '{"type": "object", "properties": {}}}}\n</tools>\n\nFor each function call, return a json object with function name and '
    "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    '⟦<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>⟧\n'
    "<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers "
    'the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its '
    'value}.Do not use variables.\n\n{\n    "type": "function",\n    "function": {\n        "name": "add",\n'
    '        "description": "Adds",\n        "parameters": {\n            "type": "object",\n            "properties": {}\n'
    "        }\n    }\n}\n\n"
)
LLAMA_CALL = '{"name": "add", "parameters": {"a": 3, "b": 4}}'
# what the templates that `source:` names make of this conversation
TOOL_TEXTS = {
    "qwen2.5": QWEN_TALK + "⟦Seven.<|im_end|>⟧\n",
    "qwen3": QWEN_TALK + "⟦<think>\n\n</think>\n\nSeven.<|im_end|>⟧\n",
    "qwen3-nothink": QWEN_TALK + "<think>\n\n</think>\n\n⟦Seven.<|im_end|>⟧\n",
    "llama3.1": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{LLAMA_TOOLS}3 + 4?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦{LLAMA_CALL}<|eot_id|>⟧"
        '<|start_header_id|>ipython<|end_header_id|>\n\n"7"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
        "⟦Seven.<|eot_id|>⟧"
    ),
    "llama4": (
        "<s><|header_start|>system<|header_end|>\n\nEnvironment: ipython\nBe brief.<|eot|>"
        f"<|header_start|>user<|header_end|>\n\n{LLAMA_TOOLS}3 + 4?<|eot|><|header_start|>assistant<|header_end|>\n\n"
        f'⟦{LLAMA_CALL}<|eot|>⟧<|header_start|>ipython<|header_end|>\n\n"7"<|eom|>'
        "<|header_start|>assistant<|header_end|>\n\n⟦Seven.<|eot|>⟧"
    ),
    "internlm2": (  # the source writes arguments that are no text as Python does, in single quotes; and no EOS at the end
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>system name=<|plugin|>\n"
        '[{"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {}}}]<|im_end|>\n'
        "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n"
        '⟦<|action_start|><|plugin|>\n{"name": "add", "arguments": {"a": 3, "b": 4}}<|action_end|><|im_end|>⟧\n'
        "<|im_start|>environment name=<|plugin|>\n7<|im_end|>\n<|im_start|>assistant\n⟦Seven.<|im_end|>⟧\n</s>"
    ),
    "mistral": (
        '<s>[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "add", "description": "Adds", "parameters": '
        '{"type": "object", "properties": {}}}}][/AVAILABLE_TOOLS][INST] Be brief.\n\n3 + 4?[/INST]'
        '⟦[TOOL_CALLS] [{"name": "add", "arguments": {"a": 3, "b": 4}, "id": "call00001"}]</s>⟧'
        '[TOOL_RESULTS] {"content": 7, "call_id": "call00001"}[/TOOL_RESULTS]⟦ Seven.</s>⟧'
    ),
}

CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [Message("user", "Hello"), Message("assistant", "Hi there")],
    "system, two turns, spaces": [
        SYSTEM,
        Message("user", "Hello"),
        Message("assistant", "Hi there"),
        Message("user", "Who are you"),
        Message("assistant", "   I am an assistant   "),
    ],
    "weight 0 first": [
        Message("user", "Hello"),
        Message("assistant", "Hi there", 0.0),
        Message("user", "Who are you"),
        Message("assistant", "Luthier"),
    ],
    "weight 0 last": [
        Message("user", "Hello"),
        Message("assistant", "Hi there", 0.5),
        Message("user", "Who are you"),
        Message("assistant", "Luthier", 0.0),
    ],
    "Chinese and emoji": [Message("user", "讲个笑话 🙂"), Message("assistant", "好的，👨‍👩‍👧 é\n第二行")],
    "line breaks and jinja": [
        Message("user", "\nline one\n\nline two\n"),
        Message("assistant", "\n  {{ 1 + 1 }} {% if %}\n\n"),
    ],
}

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"

CHATML = {
    "one turn": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧",
    "system, two turns, spaces": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n"
        "<|im_start|>assistant\n⟦   I am an assistant   <|im_end|>⟧"
    ),
    "weight 0 first": (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n"
        "<|im_start|>assistant\n⟦Luthier<|im_end|>⟧"
    ),
    "weight 0 last": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧",
    "Chinese and emoji": (
        "<|im_start|>user\n讲个笑话 🙂<|im_end|>\n<|im_start|>assistant\n⟦好的，👨‍👩‍👧 é\n第二行<|im_end|>⟧"
    ),
    "line breaks and jinja": (
        "<|im_start|>user\n\nline one\n\nline two\n<|im_end|>\n<|im_start|>assistant\n⟦\n  {{ 1 + 1 }} {% if %}\n\n<|im_end|>⟧"
    ),
}


def with_default_system(prompt: str) -> dict[str, str]:
    return {name: text if "system" in name else prompt + text for name, text in CHATML.items()}


EXPECTED: dict[str, dict[str, str]] = {
    "chatml": CHATML,
    "qwen2.5": with_default_system(QWEN),
    "auto": with_default_system(SMOL),
    "llama2": {
        "one turn": "<s>[INST] Hello [/INST]⟦ Hi there </s>⟧",
        "system, two turns, spaces": (
            "<s>[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST]⟦ Hi there </s>⟧"
            "<s>[INST] Who are you [/INST]⟦ I am an assistant </s>⟧"
        ),
        "weight 0 first": "<s>[INST] Hello [/INST] Hi there </s><s>[INST] Who are you [/INST]⟦ Luthier </s>⟧",
        "weight 0 last": "<s>[INST] Hello [/INST]⟦ Hi there </s>⟧",
        "Chinese and emoji": "<s>[INST] 讲个笑话 🙂 [/INST]⟦ 好的，👨‍👩‍👧 é\n第二行 </s>⟧",
        "line breaks and jinja": "<s>[INST] line one\n\nline two [/INST]⟦ {{ 1 + 1 }} {% if %} </s>⟧",
    },
    "llama3": {
        "one turn": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
        ),
        "system, two turns, spaces": (
            "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦I am an assistant<|eot_id|>⟧"
        ),
        "weight 0 first": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Luthier<|eot_id|>⟧"
        ),
        "weight 0 last": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
        ),
        "Chinese and emoji": (
            "<s><|start_header_id|>user<|end_header_id|>\n\n讲个笑话 🙂<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦好的，👨‍👩‍👧 é\n第二行<|eot_id|>⟧"
        ),
        "line breaks and jinja": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nline one\n\nline two<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦{{ 1 + 1 }} {% if %}<|eot_id|>⟧"
        ),
    },
    "alpaca": {
        "one turn": ALPACA + "### Instruction:\nHello\n\n### Response:⟦Hi there</s>⟧",
        "system, two turns, spaces": (
            "You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:⟦Hi there</s>⟧\n\n"
            "### Instruction:\nWho are you\n\n### Response:⟦   I am an assistant   </s>⟧"
        ),
        "weight 0 first": (
            ALPACA + "### Instruction:\nHello\n\n### Response:Hi there</s>\n\n"
            "### Instruction:\nWho are you\n\n### Response:⟦Luthier</s>⟧"
        ),
        "weight 0 last": ALPACA + "### Instruction:\nHello\n\n### Response:⟦Hi there</s>⟧",
        "Chinese and emoji": ALPACA + "### Instruction:\n讲个笑话 🙂\n\n### Response:⟦好的，👨‍👩‍👧 é\n第二行</s>⟧",
        "line breaks and jinja": (
            ALPACA + "### Instruction:\n\nline one\n\nline two\n\n\n### Response:⟦\n  {{ 1 + 1 }} {% if %}\n\n</s>⟧"
        ),
    },
}
