"""Losses over chunks of classes: values and gradients of the plain losses, in less memory."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sdd_jax import cross_entropy, linear_cross_entropy, linear_sd_dropout_loss, sd_dropout_loss

CHUNK = 8
NUM_CLASSES = [5, 16, 21]  # below one chunk, two, and two and a part
KEY = jax.random.key(0)


def with_bias(logits, bias):
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)


def plain_sd_dropout(features, kernel, bias, key, **options):
    return sd_dropout_loss(features, lambda f: with_bias(f @ kernel, bias), key, **options)


def plain_cross_entropy(features, kernel, bias, labels):
    return cross_entropy(with_bias(features @ kernel, bias), labels)


PLAIN = {linear_sd_dropout_loss: plain_sd_dropout, linear_cross_entropy: plain_cross_entropy}
both_losses = pytest.mark.parametrize("loss", PLAIN)


def arguments(loss, shape=(4, 6), num_classes=21, bias=True, dtype=np.float32, scale=1.0):
    """Features, kernel and bias; a key or label for each example; weights of the examples."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) * scale, dtype)  # noqa: E731
    parameters = draw(*shape), draw(shape[-1], num_classes), draw(num_classes) if bias else None
    last = jax.random.split(KEY, shape[:-1])
    if loss is linear_cross_entropy:
        last = jnp.asarray(random.integers(num_classes, size=shape[:-1]), jnp.int32)
    return parameters, last, jnp.asarray(random.uniform(1, 2, size=shape[:-1]), dtype)


@partial(jax.jit, static_argnames=("loss", "options"))
def run(loss, parameters, last, weights, options=(("chunk_size", CHUNK),)):
    """Per-example losses, and the gradients of their weighted sum."""

    def weighted(parameters):
        losses = loss(*parameters, last, **dict(options))
        return jnp.sum(losses * weights.astype(losses.dtype)), losses

    gradients, losses = jax.grad(weighted, has_aux=True)(parameters)
    return losses, gradients


def assert_close(actual, expected, tolerance, least=1.0):
    """Relative to the largest element of each array, or to ``least``: some are zero but for noise."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(least, np.abs(e).max()))


SHAPES = ("shape", "num_classes", "bias", "dtype", "scale")
SD_DROPOUT_CASES = [
    {},
    {"num_classes": 5},
    {"num_classes": 16, "rate": (0.2, 0.6), "temperature": 1.5, "last": KEY},
    {"rate": 0.7, "exclusive": True, "temperature": 1, "last": KEY},
    {"rate": 0.0},
    {"shape": (6,), "bias": False, "chunk_size": 1},
    {"shape": (2, 3, 6), "gradient": "forward", "chunk_size": 7},
    {"gradient": "reverse"},
    {"dtype": np.float32, "chunk_size": 4096},
    {"scale": 100.0, "temperature": 1.0},
    {"scale": 100.0, "temperature": 1.0, "gradient": "forward", "dtype": np.float32},
    {"scale": 100.0, "temperature": 1.0, "gradient": "reverse", "dtype": np.float32},
    {"kept_classes": 13},
    {"shape": (2, 3, 6), "kept_classes": 1000, "gradient": "reverse", "bias": False},
]
CROSS_ENTROPY_CASES = [
    *({"num_classes": n, "shape": (2, 3, 6)} for n in NUM_CLASSES),
    {"scale": 100.0},
    {"kept_classes": 13, "shape": (2, 3, 6)},
]


@pytest.mark.parametrize(
    ("loss", "case"),
    [
        *((linear_sd_dropout_loss, case) for case in SD_DROPOUT_CASES),
        *((linear_cross_entropy, case) for case in CROSS_ENTROPY_CASES),
    ],
    ids=lambda x: x.__name__ if callable(x) else str({k: v for k, v in x.items() if k != "last"}),
)
def test_losses_and_gradients_are_those_of_the_plain_loss(loss, case):
    case = {"dtype": np.float64, "chunk_size": CHUNK} | case
    shapes = {k: v for k, v in case.items() if k in SHAPES}
    chunks = {k: v for k, v in case.items() if k in ("chunk_size", "kept_classes")}
    options = {k: v for k, v in case.items() if k not in (*SHAPES, *chunks, "last")}
    with jax.enable_x64(case["dtype"] == np.float64):
        parameters, last, weights = arguments(loss, **shapes)
        args = parameters, case.get("last", last), weights
        expected = run(PLAIN[loss], *args, tuple(options.items()))
        actual = run(loss, *args, (*options.items(), *chunks.items()))
        # Where posteriors are one-hot, terms as large as losses times parameters cancel.
        largest = max(np.abs(x).max() for x in jax.tree.leaves(parameters))
        largest *= np.abs(expected[0]).max()
        assert largest > 0.1 or case.get("rate") == 0
        tolerance = 1e-12 if case["dtype"] == np.float64 else 1e-5
        assert_close(actual[0], expected[0], tolerance)
        assert_close(actual[1], expected[1], tolerance, max(1.0, largest))


def test_no_examples():
    losses, gradients = run(linear_sd_dropout_loss, *arguments(linear_sd_dropout_loss, (0, 6)))
    assert losses.shape == (0,)
    assert not any(np.any(gradient) for gradient in gradients)


@both_losses
def test_large_common_logits_cost_no_digits(loss):
    """Integer logits are exact in float32, also next to 2^14: the losses must be the same."""
    (features, kernel, bias), *args = arguments(loss)
    integers = [jnp.round(x) for x in (features, kernel)]
    options = (("chunk_size", CHUNK),)
    options += (("temperature", 1.0),) if loss is linear_sd_dropout_loss else ()
    actual, expected = (
        run(loss, (*integers, jnp.full_like(bias, common)), *args, options) for common in (2**14, 0)
    )
    assert_close(actual, expected, 2e-6)


@both_losses
def test_bias_of_minus_a_billion_excludes_classes(loss):
    (features, kernel, bias), last, weights = arguments(loss)
    # All classes of one chunk, some of another, none of the last.
    keep = np.arange(21) >= 13
    removed = features, kernel[:, keep], bias[keep]
    if loss is linear_cross_entropy:
        last = last % 8
    expected = run(loss, removed, last, weights)
    if loss is linear_cross_entropy:
        last = last + np.int32(13)
    losses, gradients = run(loss, (features, kernel, jnp.where(keep, bias, -1e9)), last, weights)
    assert_close((losses, [gradients[0], *(g[..., keep] for g in gradients[1:])]), expected, 1e-5)
    np.testing.assert_array_equal(gradients[1][:, ~keep], 0)


@pytest.mark.parametrize("outside", [-100, -1, 21])
def test_ignored_positions_may_have_labels_outside_the_classes(outside):
    parameters, labels, _ = arguments(linear_cross_entropy)
    counts = jnp.asarray([1.0, 0.0, 1.0, 0.0])
    replaced = jnp.where(counts > 0, labels, outside)
    losses, gradients = run(linear_cross_entropy, parameters, replaced, counts)
    expected, expected_gradients = run(linear_cross_entropy, parameters, labels, counts)
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(losses[counts > 0], expected[counts > 0])
    assert_close(gradients, expected_gradients, 1e-7)


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)  # unwraps a closed jaxpr
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("differentiate", [False, True])
@both_losses
def test_no_array_is_as_large_as_examples_times_classes(loss, differentiate):
    batch, features, num_classes = 64, 16, 256
    parameters, last, _ = arguments(loss, (batch, features), num_classes)

    def largest(loss):
        total = lambda parameters: loss(*parameters, last).sum()  # noqa: E731
        fn = jax.value_and_grad(total) if differentiate else total
        traced = equations(jax.make_jaxpr(fn)(parameters).jaxpr)
        return max(variable.aval.size for equation in traced for variable in equation.outvars)

    # The kernel's gradient has features * num_classes elements.
    assert largest(partial(loss, chunk_size=16)) <= max(features * num_classes, 2 * batch * 16)
    assert largest(PLAIN[loss]) >= batch * num_classes


def multiplications(jaxpr):
    """Number of multiplications in the matrix products of a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += multiplications(inner) * equation.params.get("length", 1)
    return total


@pytest.mark.parametrize(
    ("kept_classes", "computed_once"),
    [(0, 0), (4, 0), (5, 5), (12, 5), (13, 13), (20, 13), (21, 21), (99, 21)],
)
@both_losses
def test_logits_of_kept_chunks_are_computed_once(loss, kept_classes, computed_once):
    """Of 21 classes in chunks of 5, 8 and 8; the gradients take two products as large as the logits."""
    parameters, last, _ = arguments(loss)
    options = {"chunk_size": CHUNK, "kept_classes": kept_classes}
    total = jax.grad(lambda parameters: loss(*parameters, last, **options).sum())
    rows = 4 if loss is linear_cross_entropy else 8
    products = multiplications(jax.make_jaxpr(total)(parameters).jaxpr)
    assert products == rows * 6 * (4 * 21 - computed_once)


@both_losses
@pytest.mark.parametrize("half", [(0, 1, 2), (1, 2), (0,)], ids=str)
def test_half_precision_is_multiplied_in_its_dtype_and_summed_in_float32(loss, half):
    parameters, last, weights = arguments(loss, dtype=jnp.bfloat16)
    # The same numbers in float32. (At rate 1/2, dropout doubles, which rounds in no dtype.)
    wide, weights = jax.tree.map(lambda x: x.astype(jnp.float32), (parameters, weights))
    mixed = tuple(parameters[i] if i in half else wide[i] for i in range(3))
    losses, gradients = run(loss, mixed, last, weights)
    expected, expected_gradients = run(loss, wide, last, weights)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    assert [g.dtype for g in gradients] == [x.dtype for x in mixed]
    gradients = [g.astype(jnp.float32) for g in gradients]
    assert_close(gradients, expected_gradients, 2 * float(jnp.finfo(jnp.bfloat16).eps))
    if len(half) == 3:
        total = jax.grad(lambda parameters: loss(*parameters, last).sum())
        traced = equations(jax.make_jaxpr(total)(mixed).jaxpr)
        products = [e for e in traced if e.primitive.name == "dot_general"]
        assert len(products) == 4  # the logits, twice, and the gradients of features and kernel
        assert {v.aval.dtype.name for e in products for v in e.invars} == {"bfloat16"}
        assert {e.outvars[0].aval.dtype.name for e in products} == {"float32"}


# --------------------------------------------------------------------------- transformations


def mean_and_gradients(loss, kernel, features, last):
    def mean(kernel, features):
        return loss(features, kernel, None, last).mean()

    return jax.value_and_grad(mean, (0, 1))(kernel, features)


@pytest.fixture(scope="module")
def whole_batch():
    """For each loss: kernel, features, last; and the mean of the plain loss with its gradients."""
    results = {}
    for loss, plain in PLAIN.items():
        (features, kernel, _), last, _ = arguments(loss, bias=False)
        args = kernel, features, last
        results[loss] = args, jax.jit(partial(mean_and_gradients, plain))(*args)
    return results


@both_losses
def test_vmap_over_examples(loss, whole_batch):
    args, expected = whole_batch[loss]
    one = partial(mean_and_gradients, partial(loss, chunk_size=CHUNK))
    losses, (kernel_grad, features_grad) = jax.jit(jax.vmap(one, (None, 0, 0)))(*args)
    assert_close((losses.mean(), (kernel_grad.mean(axis=0), features_grad / 4)), expected, 1e-6)


@both_losses
@pytest.mark.parametrize("transformation", ["pmap", "shard_map", "shard_map without check_vma"])
def test_batch_sharded_over_devices(loss, transformation, whole_batch):
    (kernel, features, last), expected = whole_batch[loss]
    loss, devices = partial(loss, chunk_size=CHUNK), jax.devices()[:2]

    def step(kernel, features, last):
        value, (kernel_grad, features_grad) = mean_and_gradients(loss, kernel, features, last)
        return *jax.lax.pmean((value, kernel_grad), "device"), features_grad / 2

    if transformation == "pmap":
        axes = {"in_axes": (None, 0, 0), "out_axes": (None, None, 0)}
        sharded = jax.pmap(step, "device", devices=devices, **axes)
        args = kernel, features.reshape(2, 2, -1), last.reshape(2, 2)
    else:
        whole, batch = PartitionSpec(), PartitionSpec("device")
        mesh, args = Mesh(np.array(devices), ("device",)), (kernel, features, last)
        specs = {"in_specs": (whole, batch, batch), "out_specs": (whole, whole, batch)}
        if check_vma := transformation == "shard_map":
            # Gradients of replicated parameters are summed: differentiate the mean over devices.
            mean = partial(mean_and_gradients, lambda *args: jax.lax.pmean(loss(*args), "device"))
            step = lambda *args: tuple(jax.tree.leaves(mean(*args)))  # noqa: E731
        sharded = jax.jit(jax.shard_map(step, mesh=mesh, check_vma=check_vma, **specs))
    value, kernel_grad, features_grad = sharded(*args)
    actual = value, (kernel_grad, features_grad.reshape(features.shape))
    assert_close(actual, expected, 1e-6)


VOCABULARY_CASES = [
    ("pmap", {}),
    ("pmap", {"loss": linear_cross_entropy, "bias": False}),
    ("without check_vma", {}),
    ("shard_map", {"scale": 100.0}),
    ("shard_map", {"gradient": "reverse", "temperature": 1.0, "bias": False}),
    ("shard_map", {"loss": linear_cross_entropy, "scale": 100.0, "bias": False}),
    ("both axes", {"gradient": "forward"}),
    ("both axes", {"loss": linear_cross_entropy, "kept_classes": 4}),
]


def vocabulary(loss, transformation, parameters, last, weights, **options):
    """Losses and gradients with the classes, and perhaps the examples, over four devices."""
    P = PartitionSpec
    loss = partial(loss, axis_name="classes", chunk_size=4, **options)

    def step(parameters, last, weights):
        return run(loss, parameters, last, weights, ())

    devices = jax.devices()[:4]
    if transformation == "pmap":
        features, kernel, bias = parameters
        split = (
            jnp.stack(jnp.split(kernel, 4, axis=1)),
            bias if bias is None else bias.reshape(4, -1),
        )
        axes = (None, 0, None if bias is None else 0)
        mapped = jax.pmap(step, "classes", in_axes=(axes, None, None), devices=devices)
        losses, (features, kernel, bias) = mapped((features, *split), last, weights)
        kernel = jnp.concatenate(kernel, axis=1)
        return losses[0], (features[0], kernel, bias if bias is None else bias.reshape(-1))
    shape = (2, 2) if transformation == "both axes" else (1, 4)
    mesh = Mesh(np.array(devices).reshape(shape), ("batch", "classes"))
    specs = (P("batch"), P(None, "classes"), P("classes"))
    rows = P("batch")
    sharded = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(specs, rows, rows),
        out_specs=(rows, specs),
        check_vma=transformation != "without check_vma",
    )
    return jax.jit(sharded)(parameters, last, weights)


@pytest.mark.parametrize(("transformation", "case"), VOCABULARY_CASES)
def test_classes_sharded_over_devices(transformation, case):
    """The last device has a class that is excluded; with the large scale, posteriors are one-hot."""
    case = dict(case)
    loss, scale = case.pop("loss", linear_sd_dropout_loss), case.pop("scale", 1.0)
    has_bias, kept_classes = case.pop("bias", True), case.pop("kept_classes", 0)
    with jax.enable_x64(True):
        parameters, last, weights = arguments(
            loss, num_classes=24, bias=has_bias, dtype=np.float64, scale=scale
        )
        if has_bias:
            parameters = (*parameters[:2], parameters[2].at[-1].set(-1e9))
        expected = run(PLAIN[loss], parameters, last, weights, tuple(case.items()))
        options = case | {"kept_classes": kept_classes}
        actual = vocabulary(loss, transformation, parameters, last, weights, **options)
        largest = np.abs(expected[0]).max() * max(np.abs(x).max() for x in parameters[:2])
        assert_close(actual[0], expected[0], 1e-12)
        assert_close(actual[1], expected[1], 1e-12, max(1.0, largest))


@both_losses
def test_sharded_classes_are_not_gathered_and_have_exact_second_derivatives(loss):
    with jax.enable_x64(True):
        parameters, last, weights = arguments(loss, num_classes=24, dtype=np.float64)
        mesh = Mesh(np.array(jax.devices()[:4]), ("classes",))
        whole, classes = PartitionSpec(), PartitionSpec("classes")
        specs = (whole, PartitionSpec(None, "classes"), classes)

        def losses(parameters):
            sharded = jax.shard_map(
                lambda p, last: loss(*p, last, axis_name="classes", chunk_size=4),
                mesh=mesh, in_specs=(specs, whole), out_specs=whole,
            )  # fmt: skip
            return jnp.sum(weights * sharded(parameters, last))

        def plain(parameters):
            return jnp.sum(weights * PLAIN[loss](*parameters, last))

        def squared_gradient(function, parameters):
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(jax.grad(function)(parameters)))

        compiled = jax.jit(jax.grad(losses)).lower(parameters).compile().as_text()
        assert "all-reduce" in compiled
        assert "all-gather" not in compiled
        second = [
            jax.jit(jax.grad(partial(squared_gradient, function)))(parameters)
            for function in (losses, plain)
        ]
        assert_close(*second, 1e-11)


def test_temperature_has_no_gradient():
    parameters, keys, _ = arguments(linear_sd_dropout_loss)
    loss = lambda t: linear_sd_dropout_loss(*parameters, keys, temperature=t).sum()  # noqa: E731
    assert jax.jit(jax.grad(loss))(2.0) == 0


@both_losses
def test_forward_mode_is_refused(loss):
    (features, *head), last, _ = arguments(loss)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: loss(x, *head, last), (features,), (features,))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"rate": 1.0}, ValueError, r"rate must be in \[0, 1\), got 1.0"),
        ({"rate": 0.3, "exclusive": True}, ValueError, r"at most 1, got 2 \* \(1 - 0.3\)"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"kept_classes": -1}, ValueError, "kept_classes must be at least 0, got -1"),
        ({"kernel": (5, 21)}, ValueError, r"kernel \[D, K\], got \(4, 6\) and \(5, 21\)"),
        ({"kernel": (6,)}, ValueError, r"kernel \[D, K\], got \(4, 6\) and \(6,\)"),
        ({"features": ()}, ValueError, r"features must be \[..., D\].*got \(\) and \(6, 21\)"),
        ({"bias": (6,)}, ValueError, r"bias must be \[K\], \(21,\), or None, got \(6,\)"),
        ({"bias": (1, 21)}, ValueError, r"bias must be \[K\], \(21,\), or None, got \(1, 21\)"),
        ({"features": [[1] * 6] * 4}, TypeError, "must be floating-point, got int32"),
        ({"kernel": [[1] * 21] * 6}, TypeError, "must be floating-point, got int32"),
        ({"labels": (3,)}, TypeError, "labels must be integers, got float32"),
        ({"labels": [1, 2, 3]}, ValueError, r"the last axis, \(4,\), got \(3,\)"),
    ],
    ids=str,
)
def test_bad_arguments_are_errors(wrong, error, message):
    """A tuple is the shape of an array of float32, a list an array of integers."""
    kinds = {tuple: jnp.zeros, list: jnp.asarray}
    wrong = {k: kinds[type(v)](v) if type(v) in kinds else v for k, v in wrong.items()}
    losses = [linear_sd_dropout_loss] if "rate" in wrong else [*PLAIN]
    for loss in [linear_cross_entropy] if "labels" in wrong else losses:
        parameters, last, _ = arguments(loss)
        args = dict(zip(("features", "kernel", "bias"), parameters, strict=True))
        args["key" if loss is linear_sd_dropout_loss else "labels"] = last
        with pytest.raises(error, match=message):
            loss(**(args | wrong))
