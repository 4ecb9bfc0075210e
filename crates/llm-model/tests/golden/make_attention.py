"""Writes `attention.safetensors`: the attention of the golden families, from transformers with eager attention.

    pip install torch transformers
    python make_attention.py              # reads families/, writes attention.safetensors next to this file

For each family NAME, of the first `TOKENS` ids of `long_ids` in its `expected.safetensors`:

* `NAME.weights` (layers, heads, rows, TOKENS): the weights of the queries `ROWS`, from `output_attentions=True`;
* `NAME.zero` and `NAME.mean` (vocab): the logits of the last token with the heads of `ABLATED` (layer, head) changed before the
  output projection: to zero, or to the mean of the values of the tokens that the head may attend to;
* `NAME.value_norms` (layers, heads, TOKENS): the norms of `W_o · v`, in f64.
"""

import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
TOKENS = 60
ROWS = [0, 5, 17, 59]
ABLATED = [(0, 1), (2, 0), (2, 3)]


def parts(name, layer, config):
    """The output projection of a layer, its matrix (hidden, heads · d), and the module and slice that give the values."""
    heads = config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    if name.startswith("gpt2"):
        out = layer.attn.c_proj
        return out, out.weight.t(), layer.attn.c_attn, lambda y: y[..., 2 * config.hidden_size :]
    if name.startswith("gpt_neox"):
        out = layer.attention.dense
        whole = lambda y: y.view(*y.shape[:-1], heads, 3 * d)[..., 2 * d :].flatten(-2)
        return out, out.weight, layer.attention.query_key_value, whole
    attention = layer.self_attn
    if name.startswith("phi3"):
        kv = config.num_key_value_heads * d
        return attention.o_proj, attention.o_proj.weight, attention.qkv_proj, lambda y: y[..., -kv:]
    return attention.o_proj, attention.o_proj.weight, attention.v_proj, lambda y: y


@torch.no_grad()
def attention_of(name):
    model = AutoModelForCausalLM.from_pretrained(
        HERE / "families" / name, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    ids = load_file(HERE / "families" / name / "expected.safetensors")["long_ids"][:, :TOKENS]
    base = model.base_model
    layers = getattr(base, "h", None) or base.layers
    heads = model.config.num_attention_heads
    values, hooks, kind = {}, [], None

    def changed(index, allowed):
        def hook(_, inputs):
            (y,) = inputs
            d = y.shape[-1] // heads
            y = y.clone()
            for layer, head in ABLATED:
                if layer == index and kind:
                    v = values[index].view(TOKENS, -1, d)
                    mean = allowed[head] @ v[:, head * v.shape[1] // heads] / allowed[head].sum(1, keepdim=True)
                    y[0, :, head * d : (head + 1) * d] = mean if kind == "mean" else 0
            return (y,)

        return hook

    out = model(input_ids=ids, output_attentions=True)
    weights = torch.stack([a[0] for a in out.attentions])  # (layers, heads, t, t)
    norms = []
    for index, layer in enumerate(layers):
        o_proj, matrix, module, select = parts(name, layer, model.config)
        module.register_forward_hook(lambda _, x, y, i=index, select=select: values.update({i: select(y)[0]}))
        o_proj.register_forward_pre_hook(changed(index, (weights[index] > 0).float()))
    model(input_ids=ids)
    for index, layer in enumerate(layers):
        matrix = parts(name, layer, model.config)[1].double()
        d = matrix.shape[1] // heads
        v = values[index].double().view(TOKENS, -1, d)
        of = lambda h: (v[:, h * v.shape[1] // heads] @ matrix[:, h * d : (h + 1) * d].t()).norm(dim=-1)
        norms.append(torch.stack([of(h) for h in range(heads)]))
    result = {f"{name}.weights": weights[:, :, ROWS], f"{name}.value_norms": torch.stack(norms).float()}
    for kind in ("zero", "mean"):
        result[f"{name}.{kind}"] = model(input_ids=ids).logits[0, -1]
        assert (result[f"{name}.{kind}"] - out.logits[0, -1]).abs().max() > 1e-2, f"{name}: the ablation changes nothing"
    return result


if __name__ == "__main__":
    tensors = {}
    for folder in sorted((HERE / "families").iterdir()):
        tensors |= attention_of(folder.name)
    save_file({n: t.contiguous() for n, t in tensors.items()}, HERE / "attention.safetensors")
    print(len(tensors), "tensors,", (HERE / "attention.safetensors").stat().st_size, "bytes")
