"""The package openai, unchanged, against a server: `openai_client.py BASE MODEL`. Prints "ok"."""

import json
import sys

import openai

base, name = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
messages = [{"role": "user", "content": "the cat"}]
chat = client.chat.completions
more = {"extra_body": {"ignore_eos": True}}

# A chat, whole and streamed.
whole = chat.create(model=name, messages=messages, temperature=0, max_completion_tokens=12, n=2, **more)
assert [c.index for c in whole.choices] == [0, 1] and whole.choices[0].finish_reason == "length"
assert whole.usage.completion_tokens == 24 and whole.usage.prompt_tokens_details.cached_tokens >= 0
text = whole.choices[0].message.content
options = {"include_usage": True}
stream = chat.create(model=name, messages=messages, temperature=0, max_tokens=12, stream=True, stream_options=options, **more)
chunks = list(stream)
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 12 and not chunks[-1].choices
assert chunks[-2].choices[0].finish_reason == "length"

# Log-probabilities.
scored = chat.create(model=name, messages=messages, temperature=0, max_tokens=12, logprobs=True, top_logprobs=3, **more)
tokens = scored.choices[0].logprobs.content
assert len(tokens[0].top_logprobs) == 3 and tokens[0].logprob <= 0
assert bytes(b for t in tokens for b in t.bytes).decode(errors="replace") == scored.choices[0].message.content
completed = client.completions.create(model=name, prompt="the cat", max_tokens=4, logprobs=2, echo=True, temperature=0, **more)
logprobs = completed.choices[0].logprobs
assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
parts = list(client.completions.create(model=name, prompt="the cat", max_tokens=4, stream=True, temperature=0, **more))
assert completed.choices[0].text == "the cat" + "".join(p.choices[0].text for p in parts)

# Embeddings: the package asks for base64 if numpy is there.
vectors = client.embeddings.create(model=name, input=["the cat", "a dog"])
assert len(vectors.data) == 2 and abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-4
plain = client.embeddings.create(model=name, input="the cat", encoding_format="float")
assert all(abs(a - b) < 1e-6 for a, b in zip(plain.data[0].embedding, vectors.data[0].embedding))
assert client.models.list().data[0].id == name and client.models.retrieve(name).id == name


def fails(kind, **request):
    try:
        chat.create(**{"model": name, "messages": messages, **request})
    except kind as error:
        return error
    raise AssertionError(f"{request} does not fail with {kind}")


# Errors.
assert fails(openai.NotFoundError, model="other").code == "model_not_found"
assert fails(openai.BadRequestError, temperature=-1).param == "temperature"
assert fails(openai.BadRequestError, messages=[]).type == "invalid_request_error"
print(json.dumps("ok"))
