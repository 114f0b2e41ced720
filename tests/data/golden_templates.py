"""What the published templates make of three dialogues, written by hand: what is trained on stands in ⟦ ⟧."""

from jaxllm.data.dialogues import Dialogue, Message

TALK = Dialogue(
    (
        Message("system", "Be brief."),
        Message("user", " Hi there! "),
        Message("assistant", "Hello."),
        Message("user", "2+2?"),
        Message("assistant", "4\n"),
    )
)
ASK = Dialogue((Message("user", "Sort these.", input="b a"), Message("assistant", "a b")))
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLS = Dialogue(
    (
        Message("user", "Rain in Ulm?"),
        Message("assistant", "", tool_calls=({"name": "weather", "arguments": {"city": "Ulm"}},)),
        Message("tool", "yes"),
        Message("tool", "no"),
        Message("assistant", "Perhaps."),
    ),
    (WEATHER,),
)
SCHEMA = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}'
TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    + SCHEMA
    + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n"
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
RESULTS = "<tool_response>\nyes\n</tool_response>\n<tool_response>\nno\n</tool_response>"

TALKS = {
    "plain": "<|endoftext|>System: Be brief.\nUser:  Hi there! \nAssistant:⟦ Hello.<|endoftext|>⟧\n"
    "User: 2+2?\nAssistant:⟦ 4\n<|endoftext|>⟧\n",
    "transcript": "<|endoftext|>System: Be brief.\nUser:  Hi there! \nAssistant:⟦ Hello.\n⟧User: 2+2?\nAssistant:⟦ 4\n\n⟧",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi there! <|im_end|>\n"
    "<|im_start|>assistant\n⟦Hello.<|im_end|>⟧\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n⟦4\n<|im_end|>⟧\n",
    "llama2": "<|endoftext|>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi there! [/INST]⟦ Hello. <|endoftext|>⟧"
    "<|endoftext|>[INST] 2+2? [/INST]⟦ 4 <|endoftext|>⟧",
    "llama3": "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi there!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello.<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦4<|eot_id|>⟧",
    "llama3.1": "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi there!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello.<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦4<|eot_id|>⟧",
    "mistral": "<|endoftext|> [INST] Be brief.\n\n Hi there!  [/INST]⟦ Hello.<|endoftext|>⟧ [INST] 2+2? [/INST]⟦ 4\n<|endoftext|>⟧",
    "gemma": "<|endoftext|><start_of_turn>user\nBe brief.\n\nHi there!<end_of_turn>\n<start_of_turn>model\n⟦Hello.<end_of_turn>⟧\n"
    "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n⟦4<end_of_turn>⟧\n",
    "zephyr": "<|system|>\nBe brief.<|endoftext|>\n<|user|>\n Hi there! <|endoftext|>\n<|assistant|>\n⟦Hello.<|endoftext|>⟧\n"
    "<|user|>\n2+2?<|endoftext|>\n<|assistant|>\n⟦4\n<|endoftext|>⟧\n",
}
TALKS["qwen2.5"] = TALKS["chatml"]
LAST = {  # templates whose last answer alone can be trained on
    "qwen3": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi there! <|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦4\n<|im_end|>⟧\n",
}
LAST["qwen3-direct"] = LAST["qwen3"]
ASKS = {
    "alpaca": "<|endoftext|>Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\nSort these.\n\n### Input:\nb a\n\n### Response:"
    "⟦a b<|endoftext|>⟧",
    "bare": "<|endoftext|>Sort these.\n\nb a⟦ a b<|endoftext|>⟧",
    "gemma": "<|endoftext|><start_of_turn>user\nSort these.\n\nb a<end_of_turn>\n<start_of_turn>model\n⟦a b<end_of_turn>⟧\n",
    "qwen2.5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nSort these.\n\nb a<|im_end|>\n<|im_start|>assistant\n⟦a b<|im_end|>⟧\n",
}
CALLED = {
    "plain": f"<|endoftext|>Tools: [{SCHEMA}]\nUser: Rain in Ulm?\n"
    'Assistant:⟦ {"name": "weather", "arguments": {"city": "Ulm"}}<|endoftext|>⟧\n'
    "Tool: yes\nTool: no\nAssistant:⟦ Perhaps.<|endoftext|>⟧\n",
    "chatml": f"<|im_start|>system\n{TOOLS}<|im_end|>\n<|im_start|>user\nRain in Ulm?<|im_end|>\n"
    f"<|im_start|>assistant\n⟦{CALL}<|im_end|>⟧\n"
    "<|im_start|>tool\nyes<|im_end|>\n<|im_start|>tool\nno<|im_end|>\n<|im_start|>assistant\n⟦Perhaps.<|im_end|>⟧\n",
    "qwen2.5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
    f"{TOOLS}<|im_end|>\n<|im_start|>user\nRain in Ulm?<|im_end|>\n<|im_start|>assistant\n⟦{CALL}<|im_end|>⟧\n"
    f"<|im_start|>user\n{RESULTS}<|im_end|>\n<|im_start|>assistant\n⟦Perhaps.<|im_end|>⟧\n",
    "llama3.1": "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best answers the given"
    ' prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    'Do not use variables.\n\n{\n    "type": "function",\n    "function": {\n        "name": "weather",\n        "parameters": {\n'
    '            "type": "object",\n            "properties": {}\n        }\n    }\n}\n\nRain in Ulm?<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n⟦{"name": "weather", "parameters": {"city": "Ulm"}}<|eot_id|>⟧'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"yes"<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"no"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Perhaps.<|eot_id|>⟧",
}
CALLED_LAST = {
    "qwen3": f"<|im_start|>system\n{TOOLS}<|im_end|>\n<|im_start|>user\nRain in Ulm?<|im_end|>\n<|im_start|>assistant\n{CALL}<|im_end|>\n"
    f"<|im_start|>user\n{RESULTS}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦Perhaps.<|im_end|>⟧\n",
}
CASES = [
    *((name, TALK, "assistant", golden) for name, golden in TALKS.items()),
    *((name, TALK, "last", golden) for name, golden in LAST.items()),
    *((name, ASK, "assistant", golden) for name, golden in ASKS.items()),
    *((name, CALLS, "assistant", golden) for name, golden in CALLED.items()),
    *((name, CALLS, "last", golden) for name, golden in CALLED_LAST.items()),
]
