"""The example of a language model, on a GPT-2 of two layers over bytes."""

import functools
import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

HERE = pathlib.Path(__file__).parent


def load(path):
    """Imports a file of the repository that is not part of the package."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program, peer = (
    load(HERE.parents[1] / "examples" / "language_model.py"),
    load(HERE / "peers/gpt2.py"),
)
GOLDEN = json.loads((HERE / "peers" / "gpt2.json").read_text())
TOKENS = peer.TOKENS.astype(np.int32)


@pytest.fixture(autouse=True)
def jax_as_it_is_elsewhere():
    """Implicit promotion, as in a project without this one's strictness."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def write(folder, arrays=None, **changes):
    """Writes a network as Hugging Face does."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(peer.CONFIG | changes))
    safetensors.numpy.save_file(arrays or peer.arrays(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The config and the parameters."""
    return program.read_network(write(tmp_path_factory.mktemp("network") / "gpt2"))


@functools.partial(jax.jit, static_argnames="epsilon")
def logits_of(params, tokens, epsilon=1e-5):
    config = peer.CONFIG | {"layer_norm_epsilon": epsilon}
    return program.features(params, tokens, config) @ params["wte.weight"].T


def test_logits_are_those_of_transformers(network):
    logits = logits_of(network[1], TOKENS)
    np.testing.assert_allclose(logits[..., ::16], GOLDEN["logits"], rtol=1e-5, atol=1e-5)
    log_sum_exp = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(log_sum_exp, GOLDEN["log_sum_exp"], rtol=1e-5)


def test_files_of_transformers_and_of_the_hub_name_the_same_parameters(network, tmp_path):
    arrays = {f"transformer.{name}": array for name, array in peer.arrays().items()}
    arrays["lm_head.weight"] = np.zeros_like(arrays["transformer.wte.weight"])
    arrays["transformer.h.0.attn.bias"] = np.zeros((1, 1, 32, 32), np.float32)
    _, params = program.read_network(write(tmp_path / "gpt2", arrays))
    jax.tree.map(np.testing.assert_array_equal, params, network[1])


def test_both_losses_have_the_gradient_of_the_tokens_that_are_not_padding(network):
    config, params = network
    lengths, key = np.array([8, 4], np.int32), jax.random.key(0)

    @functools.partial(jax.jit, static_argnames=("losses", "weight"))
    def run(params, tokens, losses, weight):
        options = {"config": config, "losses": losses, "weight": weight}
        function = functools.partial(program.sum_and_count, **options)
        return jax.value_and_grad(function, has_aux=True)(params, tokens, lengths, key)

    logits = np.asarray(logits_of(params, TOKENS)[:, :-1], np.float64)
    log_posterior = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    at_label = np.take_along_axis(log_posterior, TOKENS[:, 1:, None], axis=-1)[..., 0]
    (total, count), _ = run(params, TOKENS, program.chunked, 0)
    assert count == 7 + 3
    np.testing.assert_allclose(total, -at_label[0].sum() - at_label[1, :3].sum(), rtol=1e-5)

    (plain, _), expected = run(params, TOKENS, program.plain, 1.0)
    padded = np.where(np.arange(8) < lengths[:, None], TOKENS, 0)
    (chunked, _), actual = run(params, padded, program.chunked, 1.0)
    assert chunked > total + 0.1
    np.testing.assert_allclose(chunked, plain, rtol=1e-5)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(e).max() > 1e-3
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-5 * np.abs(e).max())


def test_the_chunks_need_a_fraction_of_the_memory(network):
    config, params = network
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    shapes["wte.weight"] = jax.ShapeDtypeStruct((50257, 16), jnp.float32)
    optimizer = optax.sgd(1e-3)
    batch = jax.ShapeDtypeStruct((16, 33), jnp.int32), jax.ShapeDtypeStruct((16,), jnp.int32)

    def temporary(losses):
        step = program.build_step(optimizer, config=config, losses=losses, weight=1.0)
        key = jax.random.key(0)
        lowered = step.lower(shapes, jax.eval_shape(optimizer.init, shapes), *batch, key)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    logits = 512 * 50257 * 4
    assert temporary(program.plain) > 3 * logits
    assert temporary(program.chunked) < logits


def test_pieces_predict_every_token_but_the_first_once():
    paragraphs = [list(range(1, 8)), [20], [30, 31], list(range(40, 49))]
    tokens, lengths = program.cut(paragraphs, 4)
    pieces = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    assert pieces == [
        [1, 2, 3, 4, 5],
        [5, 6, 7],
        [30, 31],
        [40, 41, 42, 43, 44],
        [44, 45, 46, 47, 48],
    ]
    assert not any(row[n:].any() for row, n in zip(tokens, lengths, strict=True))
    *_, (last, last_lengths) = program.batches(tokens, lengths, 3)
    np.testing.assert_array_equal(last, [*tokens[3:], np.zeros(5)])
    assert last_lengths.tolist() == [5, 5, 0]


def test_paragraphs_become_the_ids_of_their_tokens(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text("One line,\nanother.\n\n\n\nCafé")
    first, second = program.read_tokens(tmp_path, tmp_path / "text")
    assert first[-1] == second[-1] == 256
    assert [alphabet[i] for i in first[:4]] == ["O", "n", "e", "Ġ"]
    assert len(second) == len("Café".encode()) + 1


# --------------------------------------------------------------------------- the command line


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the program with a tokenizer of bytes; returns what it prints."""
    write(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").touch()
    (tmp_path / "text").write_text("\n\n".join(f"all {n} work and no play" for n in range(30)))
    monkeypatch.setattr(
        program,
        "read_tokens",
        lambda _, path: [[*text, 256] for text in path.read_bytes().split(b"\n\n")],
    )

    def run(*arguments):
        files = f"--model={tmp_path / 'gpt2'}", f"--text={tmp_path / 'text'}"
        monkeypatch.setattr("sys.argv", ["program", *files, "--length=32", *arguments])
        program.main()
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_the_program_learns_alike_with_both_losses(run):
    options = "--steps=40", "--batch=4", "--learning-rate=1e-2"
    outputs = {loss: run(f"--loss={loss}", *options) for loss in ("chunked", "plain")}
    perplexities, losses = (
        [np.float64(re.findall(pattern, text)) for text in outputs.values()]
        for pattern in (r"perplexity (\S+)", r"step \d+: loss (\S+)")
    )
    np.testing.assert_allclose(*losses, atol=0.05)
    np.testing.assert_allclose(losses[0][:5], losses[1][:5], atol=0.0011)
    assert len(losses[0]) == 40
    for before, after in perplexities:
        assert after < 30 < 257 < before  # 257: of a network that knows nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory=1e-6"], r"--memory: a step with --loss=chunked needs 0\.00 GB, got 1e-06"),
        (["--length=33"], "--length: must be at most 32, got 33"),
        (["--steps=few"], "argument --steps: invalid int value: 'few'"),
        (["--steps=0"], "--steps: must be at least 1, got 0"),
        (["--model=elsewhere"], r"elsewhere/config\.json: no such file"),
        (["--text=nothing"], "nothing: no such file"),
    ],
    ids=lambda x: "" if isinstance(x, str) else x[0],
)
def test_wrong_arguments_are_one_line(run, arguments, message):
    with pytest.raises(SystemExit, match=f"^error: {message}$"):
        run(*arguments)


def test_other_networks_and_short_texts_are_one_line(run, tmp_path):
    (tmp_path / "text").write_text("short")
    with pytest.raises(
        SystemExit, match=r"^error: --text: must have at least 2 paragraphs, got 1$"
    ):
        run()
    write(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SystemExit, match=r"^error: .*model\.safetensors: .*header.*$"):
        run()
    write(tmp_path / "gpt2", activation_function="relu")
    with pytest.raises(SystemExit, match=r"must be a GPT-2 with gelu_new, got \['gpt2', 'relu'\]$"):
        run()
