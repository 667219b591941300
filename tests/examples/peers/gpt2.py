"""Writes gpt2.json: the logits of transformers' GPT-2 with made parameters.

Not run by the tests, which use the parameters. To repeat it, in an environment of its own::

    pip install torch==2.13.0 transformers==5.24.0 && python tests/examples/peers/gpt2.py
"""

import json
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

CONFIG = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "vocab_size": 257,  # bytes, and the end of a text
    "n_positions": 32,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": 2,
    "layer_norm_epsilon": 1e-5,
}
TOKENS = np.random.default_rng(0).integers(0, 257, (2, 8))


def arrays():
    """``{name: array}`` as Hugging Face's ``gpt2`` lays them out; each is a function of its name."""
    width = CONFIG["n_embd"]
    shapes = {"wte.weight": (257, width), "wpe.weight": (32, width)}
    for layer in range(CONFIG["n_layer"]):
        name = f"h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)}
        for linear, shape in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            shapes |= {f"{name}.{linear}.weight": shape, f"{name}.{linear}.bias": shape[1:]}
    shapes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    return {name: _made(name, shape) for name, shape in shapes.items()}


def _made(name, shape):
    random = np.random.default_rng(zlib.crc32(name.encode()))
    scale = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
    return (scale + 0.3 * random.standard_normal(shape)).astype(np.float32)


def main():
    """Writes every 16th logit of each token, and the log-sum-exp of all, computed in float64."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    options = {k: v for k, v in CONFIG.items() if k != "model_type"}
    network = GPT2LMHeadModel(GPT2Config(**options)).double().eval()
    state = {f"transformer.{k}": torch.from_numpy(v).double() for k, v in arrays().items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"parameters that differ: {missing}, {unexpected}")
    with torch.no_grad():
        logits = network(torch.from_numpy(TOKENS)).logits
    results = {
        "versions": {package: version(package) for package in ("torch", "transformers")},
        "logits": logits[..., ::16].numpy().round(9).tolist(),
        "log_sum_exp": logits.logsumexp(-1).numpy().round(9).tolist(),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
