"""Times prefill and decoding of a Llama model in other programs: the baselines of `llm-infer bench`.

    python infer.py --make CONFIG.json --out DIR         # random weights: a Hugging Face folder and model-f32.gguf
    python infer.py --quantize q8_0 --model DIR          # model-q8_0.gguf from it, by llama.cpp
    python infer.py --engine transformers --dtype f32 --model DIR
    python infer.py --engine llama.cpp --dtype q8_0 --model DIR

Needs torch, transformers, gguf and llama-cpp-python. Prints one JSON object with the keys of `llm-infer bench`.
"""

import argparse
import json
import pathlib
import resource
import statistics
import time


def make(config, out):
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(42)
    shape = AutoConfig.for_model("llama", **{k: v for k, v in json.loads(config.read_text()).items() if k != "model_type"})
    model = AutoModelForCausalLM.from_config(shape).float().eval()
    model.save_pretrained(out)
    writer = gguf.GGUFWriter(out / "model-f32.gguf", "llama")
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.hidden_size // shape.num_attention_heads)
    writer.add_rope_freq_base(json.loads(config.read_text())["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("no_vocab")
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in model.state_dict().items():
        tensor = tensor.numpy()
        if name == "lm_head.weight" and shape.tie_word_embeddings:
            continue
        short = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
        if name in short:
            writer.add_tensor(short[name] + ".weight", tensor)
            continue
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        part = rest.removesuffix(".weight")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            # llama.cpp rotates adjacent pairs (interleaved layout), Hugging Face the pairs (i, i + head_dim / 2).
            heads = shape.num_attention_heads if "q_proj" in part else shape.num_key_value_heads
            rows, cols = tensor.shape
            tensor = tensor.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)
        writer.add_tensor(f"blk.{layer}.{names[part]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(model, dtype):
    import ctypes

    import llama_cpp

    file = model / f"model-{dtype}.gguf"
    if file.exists():
        return
    kinds = {"bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0", "q4_k": "MOSTLY_Q4_K_S", "q6_k": "MOSTLY_Q6_K"}
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_" + kinds[dtype])
    params.pure = dtype in ("q8_0", "q4_0")
    source = str(model / "model-f32.gguf").encode()
    failed = llama_cpp.llama_model_quantize(source, str(file).encode(), ctypes.byref(params))
    assert failed == 0, f"llama.cpp cannot write {file}"


def prompt(tokens, vocab):
    return [(i * 2654435761) % 2**32 % vocab for i in range(tokens)]


def transformers(args):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    ids = torch.tensor([prompt(args.prompt_tokens, model.config.vocab_size)])
    prefill, decode = [], []
    with torch.inference_mode():
        for _ in range(args.rounds):
            start = time.perf_counter()
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            first = time.perf_counter()
            for _ in range(args.new_tokens - 1):
                out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            prefill.append((first - start) / args.prompt_tokens)
            decode.append((time.perf_counter() - first) / (args.new_tokens - 1))
    return prefill, decode


def llama_cpp(args):
    import llama_cpp
    import numpy as np

    file = args.model / f"model-{args.dtype}.gguf"
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = args.prompt_tokens + args.new_tokens
    params.n_batch = params.n_ubatch = args.prompt_tokens
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocab = json.loads((args.model / "config.json").read_text())["vocab_size"]
    ids = prompt(args.prompt_tokens, vocab)
    prefill, decode = [], []

    def step(tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    for _ in range(args.rounds):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        token = step(ids)
        first = time.perf_counter()
        for _ in range(args.new_tokens - 1):
            token = step([token])
        prefill.append((first - start) / args.prompt_tokens)
        decode.append((time.perf_counter() - first) / (args.new_tokens - 1))
    return prefill, decode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--make", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--quantize")
    parser.add_argument("--engine", choices=["transformers", "llama.cpp"])
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.make:
        args.out.mkdir(parents=True, exist_ok=True)
        make(args.make, args.out)
        return
    if args.quantize:
        quantize(args.model, args.quantize)
        return
    prefill, decode = {"transformers": transformers, "llama.cpp": llama_cpp}[args.engine](args)
    print(
        json.dumps(
            {
                "prefill_tokens_per_second": 1 / statistics.median(prefill),
                "decode_tokens_per_second": 1 / statistics.median(decode),
                "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
