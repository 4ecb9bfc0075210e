"""Tools and JSON schemas with the package openai, unchanged: `openai_tools.py BASE MODEL`. Prints "ok"."""

import json
import sys

import openai

base, name = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "the cat"}]
chat = client.chat.completions

schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "weather", "description": "it's <b>", "parameters": schema}}]
called = chat.create(model=name, messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200)
call = called.choices[0].message.tool_calls[0]
assert called.choices[0].finish_reason == "tool_calls" and called.choices[0].message.content is None
assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
with chat.stream(model=name, messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=200) as events:
    for event in events:
        pass
    final = events.get_final_completion()
streamed = final.choices[0].message.tool_calls[0]
assert streamed.id.startswith("call_") and streamed.id != call.id and json.loads(streamed.function.arguments)["city"]
turn = [*messages, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "warm"}]
assert chat.create(model=name, messages=turn, tools=tools, tool_choice="none", max_tokens=4).choices[0].message.role == "assistant"
formatted = chat.create(model=name, messages=messages, max_tokens=200,
                        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
assert json.loads(formatted.choices[0].message.content)["city"] in ("Oslo", "Rome")
print(json.dumps("ok"))
