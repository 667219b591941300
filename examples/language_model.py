"""SD-Dropout in fine-tuning GPT-2 within a budget of memory: losses by chunks of the vocabulary.

    python examples/language_model.py --model=gpt2 --text=book.txt
    python examples/language_model.py --model=gpt2 --text=book.txt --loss=plain --memory=8

``gpt2`` is a folder with Hugging Face's ``config.json``, ``model.safetensors`` and ``tokenizer.json`` of
GPT-2 or of a network of that form, such as DistilGPT-2; the tokenizer needs ``pip install tokenizers``.
The paragraphs of the text are cut into pieces of ``--length`` tokens; every tenth is held out. With
``--memory``, the program stops before it trains if a step needs more.
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

import sdd_jax

RATE = 0.1  # of GPT-2's own dropout, which is left out here


def require(ok, message):
    """Ends the program with one line unless ``ok``."""
    if not ok:
        raise SystemExit(f"error: {message}")


# ------------------------------------------------------------------------------------ the network


def read_network(folder):
    """Returns the config, and the parameters, those of all layers in arrays ``[n_layer, ...]``."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    form = [config.get(name) for name in ("model_type", "activation_function")]
    require(form == ["gpt2", "gelu_new"], f"--model: must be a GPT-2 with gelu_new, got {form}")
    file = folder / "model.safetensors"
    try:
        arrays = safetensors.numpy.load_file(file)
    except safetensors.SafetensorError as error:
        raise SystemExit(f"error: {file}: {error}") from None
    arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    params = {name: arrays[name] for name in arrays if name.startswith(("wte.", "wpe.", "ln_f."))}
    params["layers"] = {
        name.removeprefix("h.0."): np.stack(
            [arrays[name.replace("h.0.", f"h.{i}.")] for i in range(config["n_layer"])]
        )
        for name in arrays
        if name.startswith("h.0.") and not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    return config, params


def features(params, tokens, config):
    """Tokens ``[B, S]`` to the input of the last layer ``[B, S, D]``."""

    def norm(x, params, name):
        x = jax.nn.standardize(x, axis=-1, epsilon=config["layer_norm_epsilon"])
        return x * params[f"{name}.weight"] + params[f"{name}.bias"]

    def linear(x, params, name):
        return x @ params[f"{name}.weight"] + params[f"{name}.bias"]

    @jax.checkpoint  # computes a layer again for its gradient, instead of keeping what is in it
    def layer(x, params):
        queries_keys_values = jnp.split(
            linear(norm(x, params, "ln_1"), params, "attn.c_attn"), 3, -1
        )
        heads = (part.reshape(*x.shape[:2], config["n_head"], -1) for part in queries_keys_values)
        mixed = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(x.shape)
        x = x + linear(mixed, params, "attn.c_proj")
        hidden = jax.nn.gelu(linear(norm(x, params, "ln_2"), params, "mlp.c_fc"), approximate=True)
        return x + linear(hidden, params, "mlp.c_proj"), None

    x = params["wte.weight"][tokens] + params["wpe.weight"][: tokens.shape[1]]
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return norm(x, params, "ln_f")


# ------------------------------------------------------------------------------------- the losses


def chunked(features, kernel, labels, key):
    """Cross-entropy and SD-Dropout of each token, in the memory of a chunk of the vocabulary."""
    ce = sdd_jax.linear_cross_entropy(features, kernel, None, labels)
    return ce, sdd_jax.linear_sd_dropout_loss(features, kernel, None, key, rate=RATE)


def plain(features, kernel, labels, key):
    """The same numbers, from the logits of all tokens."""
    head = lambda f: f @ kernel  # noqa: E731
    ce = sdd_jax.cross_entropy(head(features), labels)
    return ce, sdd_jax.sd_dropout_loss(features, head, key, rate=RATE)


def sum_and_count(params, tokens, lengths, key, *, config, losses, weight):
    """Adds up the loss of the tokens that are not padding; returns also their number."""
    kernel = params["wte.weight"].T  # the last layer is the embedding table
    ce, sdd = losses(features(params, tokens[:, :-1], config), kernel, tokens[:, 1:], key)
    valid = jnp.arange(1, tokens.shape[1]) < lengths[:, None]
    return sdd_jax.sum_and_count(ce + weight * sdd, valid)


def build_step(optimizer, **options):
    """Returns the jitted training step."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, *batch):
        def mean(params):
            total, count = sum_and_count(params, *batch, **options)
            return total / count

        loss, gradients = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def build_perplexity(config):
    """Returns a function from the parameters and batches to the perplexity of a text."""

    @jax.jit
    def cross_entropy(params, tokens, lengths):
        return sum_and_count(params, tokens, lengths, None, config=config, losses=losses, weight=0)

    def losses(features, kernel, labels, key):
        return sdd_jax.linear_cross_entropy(features, kernel, None, labels), 0

    def perplexity(params, batches):
        totals, counts = zip(*(cross_entropy(params, *batch) for batch in batches), strict=True)
        return np.exp(sum(map(float, totals)) / sum(map(float, counts)))

    return perplexity


# --------------------------------------------------------------------------------------- the text


def read_tokens(folder, path):
    """Returns the tokens of each paragraph, with the token that ends a text."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise SystemExit("error: the tokenizer needs: pip install tokenizers") from None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    require(end is not None, f"{folder / 'tokenizer.json'}: must have the token <|endoftext|>")
    paragraphs = [text for text in path.read_text(encoding="utf-8").split("\n\n") if text.strip()]
    return [[*encoded.ids, end] for encoded in tokenizer.encode_batch(paragraphs)]


def cut(paragraphs, length):
    """Returns pieces ``[N, length + 1]``, padded with zeros, and the number of tokens in each.

    The first token of a piece is not predicted: it is the last of the piece before.
    """
    pieces = [ids[i : i + length + 1] for ids in paragraphs for i in range(0, len(ids) - 1, length)]
    tokens = np.zeros((len(pieces), length + 1), np.int32)
    for row, piece in zip(tokens, pieces, strict=True):
        row[: len(piece)] = piece
    return tokens, np.array([len(piece) for piece in pieces], np.int32)


def batches(tokens, lengths, size):
    """Yields batches in order, the last filled up with empty pieces."""
    missing = -len(tokens) % size
    tokens, lengths = np.pad(tokens, ((0, missing), (0, 0))), np.pad(lengths, (0, missing))
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size], lengths[start : start + size]


# ------------------------------------------------------------------------------------ the program


def main():
    """Fine-tunes, and prints the perplexity of the held-out text before and after."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder of the network")
    parser.add_argument("--text", type=pathlib.Path, required=True, help="text file")
    parser.add_argument("--loss", choices=("chunked", "plain"), default="chunked")
    parser.add_argument("--memory", type=float, metavar="GB", help="limit of a step")
    parser.add_argument("--weight", type=float, default=0.1, help="of SD-Dropout")
    parser.add_argument("--length", type=int, default=256, help="tokens in a piece")
    parser.add_argument("--batch", type=int, default=16, help="pieces in a step")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.error = functools.partial(require, False)  # one line
    args = parser.parse_args()
    for name in ("length", "batch", "steps"):
        value = getattr(args, name)
        require(value >= 1, f"--{name}: must be at least 1, got {value}")
    files = ("config.json", "model.safetensors", "tokenizer.json")
    for path in (*(args.model / name for name in files), args.text):
        require(path.is_file(), f"{path}: no such file")

    config, params = read_network(args.model)
    longest = config["n_positions"]
    require(args.length <= longest, f"--length: must be at most {longest}, got {args.length}")
    paragraphs = read_tokens(args.model, args.text)
    require(len(paragraphs) > 1, f"--text: must have at least 2 paragraphs, got {len(paragraphs)}")
    held_out = cut(paragraphs[::10], args.length)
    tokens, lengths = cut([ids for i, ids in enumerate(paragraphs) if i % 10], args.length)
    print(f"{len(tokens)} pieces to train on, {len(held_out[0])} held out")

    params, optimizer = jax.device_put(params), optax.adamw(args.learning_rate)
    losses = {"chunked": chunked, "plain": plain}[args.loss]
    step = build_step(optimizer, config=config, losses=losses, weight=args.weight)
    state = jax.jit(optimizer.init)(params)
    shapes = (args.batch, args.length + 1), (args.batch,)
    batch = (jax.ShapeDtypeStruct(shape, np.int32) for shape in shapes)
    step = step.lower(params, state, *batch, jax.random.key(0)).compile()
    memory = step.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    kept, temporary = kept / 1e9, memory.temp_size_in_bytes / 1e9
    needs = f"a step with --loss={args.loss} needs {kept + temporary:.2f} GB"
    if args.memory is not None:
        require(kept + temporary <= args.memory, f"--memory: {needs}, got {args.memory:g}")
    print(f"{needs}: {kept:.2f} for parameters and optimizer, {temporary:.2f} temporary")

    perplexity = build_perplexity(config)
    held_out = list(batches(*held_out, args.batch))
    print(f"held out: perplexity {perplexity(params, held_out):.2f}")
    random = np.random.default_rng(0)
    for i in range(args.steps):
        rows = random.choice(len(tokens), args.batch)
        key = jax.random.fold_in(jax.random.key(0), i)
        params, state, loss = step(params, state, tokens[rows], lengths[rows], key)
        print(f"step {i + 1}: loss {loss:.3f}")
    print(f"held out: perplexity {perplexity(params, held_out):.2f}")


if __name__ == "__main__":
    main()
