"""Losses over chunks of classes: the values and gradients of the plain ones, without their arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sdd_jax import (
    cross_entropy,
    linear_cross_entropy,
    linear_sd_dropout_loss,
    sd_dropout_loss,
)

CHUNK = 8
CHUNKED = (("chunk_size", CHUNK),)
# Fewer classes than a chunk, one chunk, two chunks, and two and a part.
NUM_CLASSES = [5, 8, 16, 21]
KEY = jax.random.key(0)


def arrays(shape=(4, 6), num_classes=21, bias=True, dtype=np.float32, scale=1.0):
    """Features, kernel and bias, weights of the examples, and a key for each example."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) * scale, dtype)  # noqa: E731
    parameters = draw(*shape), draw(shape[-1], num_classes), draw(num_classes) if bias else None
    weights = jnp.asarray(random.uniform(1, 2, size=shape[:-1]), dtype)
    return parameters, weights, jax.random.split(KEY, shape[:-1])


def labels_of(parameters):
    features, kernel, _ = parameters
    random = np.random.default_rng(1)
    return jnp.asarray(random.integers(kernel.shape[1], size=features.shape[:-1]), jnp.int32)


def logits_of(features, kernel, bias):
    logits = features @ kernel
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)


def plain_sd_dropout(features, kernel, bias, key, **options):
    return sd_dropout_loss(features, lambda f: logits_of(f, kernel, bias), key, **options)


def plain_cross_entropy(features, kernel, bias, labels):
    return cross_entropy(logits_of(features, kernel, bias), labels)


@partial(jax.jit, static_argnames=("loss", "options"))
def losses_and_gradients(loss, parameters, weights, key_or_labels, options=()):
    """Per-example losses, and the gradients of their weighted sum by features, kernel and bias."""

    def weighted(parameters):
        losses = loss(*parameters, key_or_labels, **dict(options))
        return jnp.sum(losses * weights.astype(losses.dtype)), losses

    gradients, losses = jax.grad(weighted, has_aux=True)(parameters)
    return losses, gradients


def assert_close(actual, expected, tolerance, least=1.0):
    """Relative to the largest element of each array, and to ``least``: some are zero but for noise."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(least, np.abs(e).max()))


def assert_equal_sd_dropout(given, tolerance, chunk_size=CHUNK, **options):
    """Losses and gradients of the chunked loss are those of the plain one."""
    options = tuple(options.items())
    expected = losses_and_gradients(plain_sd_dropout, *given, options)
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 0.1
    chunked = (*options, ("chunk_size", chunk_size))
    actual = losses_and_gradients(linear_sd_dropout_loss, *given, chunked)
    assert_close(actual[0], expected[0], tolerance)
    # Where posteriors are one-hot, terms as large as losses times parameters cancel in the gradients.
    parameter = max(np.abs(x).max() for x in jax.tree.leaves(given[0]))
    least = max(1.0, np.abs(expected[0]).max() * parameter)
    assert_close(actual[1], expected[1], tolerance, least)


@pytest.mark.parametrize(
    ("num_classes", "gradient"),
    [*((n, "both") for n in NUM_CLASSES), (21, "forward"), (21, "reverse")],
)
def test_sd_dropout_in_chunks_equals_it_at_once(num_classes, gradient):
    with jax.enable_x64(True):
        given = arrays(num_classes=num_classes, dtype=np.float64)
        assert_equal_sd_dropout(given, 1e-12, gradient=gradient)


def test_sd_dropout_in_float32():
    assert_equal_sd_dropout(arrays(), 1e-5)


@pytest.mark.parametrize(("shape", "chunk_size"), [((6,), 7), ((2, 3, 6), 1)], ids=str)
def test_any_chunk_size_and_leading_dimensions_without_bias(shape, chunk_size):
    assert_equal_sd_dropout(arrays(shape, bias=False), 1e-5, chunk_size)


def test_no_examples():
    given = arrays((0, 6))
    losses, gradients = losses_and_gradients(linear_sd_dropout_loss, *given, CHUNKED)
    assert losses.shape == (0,)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": (0.2, 0.6), "temperature": 1.5},
        {"rate": 0.7, "exclusive": True, "temperature": 1},
    ],
    ids=str,
)
def test_masks_are_those_of_the_plain_loss(options):
    parameters, weights, _ = arrays()
    assert_equal_sd_dropout((parameters, weights, KEY), 1e-5, **options)


def test_defaults_are_those_of_the_plain_loss():
    given = arrays()
    actual = losses_and_gradients(linear_sd_dropout_loss, *given)
    assert_close(actual, losses_and_gradients(plain_sd_dropout, *given), 1e-5)


def test_rate_zero_gives_zero():
    options = (*CHUNKED, ("rate", 0.0))
    zeros = losses_and_gradients(linear_sd_dropout_loss, *arrays(), options)
    for value in jax.tree.leaves(zeros):
        np.testing.assert_allclose(value, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "gradient", "tolerance"),
    [("float64", "both", 1e-12), ("float32", "forward", 1e-5), ("float32", "reverse", 1e-5)],
)
def test_extreme_logits(dtype, gradient, tolerance):
    with jax.enable_x64(dtype == "float64"):
        given = arrays(dtype=dtype, scale=100.0)
        assert np.abs(logits_of(*given[0])).max() > 1e4
        assert_equal_sd_dropout(given, tolerance, gradient=gradient, temperature=1.0)


@pytest.mark.parametrize("loss", [linear_sd_dropout_loss, linear_cross_entropy])
def test_large_common_logits_cost_no_digits(loss):
    """Logits of whole numbers are exact in float32, also beside 2^14: the losses must be the same."""
    random = np.random.default_rng(0)
    whole = lambda *shape: jnp.asarray(random.integers(-1, 2, size=shape), jnp.float32)  # noqa: E731
    features, kernel, bias = whole(4, 6), whole(6, 21), jnp.zeros(21)
    parameters, large = (features, kernel, bias), (features, kernel, bias + 2**14)
    if loss is linear_sd_dropout_loss:
        last, options = KEY, {"temperature": 1.0}
    else:
        last, options = labels_of(parameters), {}
    given = jnp.ones(4), last, (*CHUNKED, *options.items())
    assert_close(
        losses_and_gradients(loss, large, *given),
        losses_and_gradients(loss, parameters, *given),
        2e-6,
    )


@pytest.mark.parametrize("loss", [linear_sd_dropout_loss, linear_cross_entropy])
def test_bias_of_minus_a_billion_leaves_classes_out(loss):
    (features, kernel, bias), weights, keys = arrays()
    # A whole chunk of them, a part of one, and none in the last.
    keep = np.array([False] * 5 + [False] * 8 + [True] * 3 + [True] * 5)
    labels = jnp.asarray([0, 3, 7, 2], jnp.int32)  # among the kept
    last, last_of_all = (
        (keys, keys) if loss is linear_sd_dropout_loss else (labels, labels + np.int32(13))
    )
    without = (features, kernel[:, keep], bias[keep])
    expected = losses_and_gradients(loss, without, weights, last, CHUNKED)
    masked = (features, kernel, jnp.where(keep, bias, -1e9))
    losses, (of_features, of_kernel, of_bias) = losses_and_gradients(
        loss, masked, weights, last_of_all, CHUNKED
    )
    actual = losses, (of_features, of_kernel[:, keep], of_bias[keep])
    assert_close(actual, expected, 1e-5)
    np.testing.assert_array_equal(of_kernel[:, ~keep], 0)


@pytest.mark.parametrize(("num_classes", "scale"), [*((n, 1.0) for n in NUM_CLASSES), (21, 100.0)])
def test_cross_entropy_in_chunks_equals_it_at_once(num_classes, scale):
    with jax.enable_x64(True):
        parameters, weights, _ = arrays((2, 3, 6), num_classes, dtype=np.float64, scale=scale)
        given = parameters, weights, labels_of(parameters)
        expected = losses_and_gradients(plain_cross_entropy, *given)
        actual = losses_and_gradients(linear_cross_entropy, *given, CHUNKED)
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_labels_of_any_integer_dtype(dtype):
    """More classes than an int8 has numbers."""
    parameters, _, _ = arrays(num_classes=300, bias=False)
    labels = jnp.asarray([0, 100, 127, 5], dtype)
    actual = linear_cross_entropy(*parameters, labels, chunk_size=128)
    expected = plain_cross_entropy(*parameters, labels.astype(jnp.int32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("outside", [-100, -1, 21])
def test_positions_that_do_not_count_may_have_labels_outside(outside):
    parameters, _, _ = arrays()
    labels = labels_of(parameters)
    counts = jnp.asarray([1.0, 0.0, 1.0, 0.0])
    of_labels = partial(losses_and_gradients, linear_cross_entropy, parameters, counts)
    losses, gradients = of_labels(jnp.where(counts > 0, labels, outside), CHUNKED)
    expected, expected_gradients = of_labels(labels, CHUNKED)
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(losses[counts > 0], expected[counts > 0])
    assert_close(gradients, expected_gradients, 1e-7)


# --------------------------------------------------------------------------- memory


def equations(jaxpr):
    """All equations of a jaxpr, and of those within it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)  # of a closed jaxpr
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize(
    ("chunked", "plain"),
    [
        (linear_sd_dropout_loss, plain_sd_dropout),
        (linear_cross_entropy, plain_cross_entropy),
    ],
)
def test_no_array_is_as_large_as_examples_times_classes(chunked, plain, differentiate):
    batch, features, num_classes = 64, 16, 256
    parameters, _, keys = arrays((batch, features), num_classes)
    last = keys if chunked is linear_sd_dropout_loss else labels_of(parameters)

    def largest(loss):
        total = lambda parameters: loss(*parameters, last).sum()  # noqa: E731
        fn = jax.value_and_grad(total) if differentiate else total
        traced = equations(jax.make_jaxpr(fn)(parameters).jaxpr)
        return max(variable.aval.size for equation in traced for variable in equation.outvars)

    # The gradient by the kernel has features * num_classes elements.
    assert largest(partial(chunked, chunk_size=16)) <= max(features * num_classes, 2 * batch * 16)
    assert largest(plain) >= batch * num_classes


# --------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("loss", [linear_sd_dropout_loss, linear_cross_entropy])
def test_half_precision_is_summed_in_float32(loss, dtype):
    parameters, weights, keys = arrays(dtype=dtype)
    last = keys if loss is linear_sd_dropout_loss else labels_of(parameters)
    losses, gradients = losses_and_gradients(loss, parameters, weights, last, CHUNKED)
    # The same numbers, in float32. (At rate 1/2, dropout doubles, which no dtype rounds.)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (parameters, weights))
    expected, expected_gradients = losses_and_gradients(loss, *wide, last, CHUNKED)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    assert all(x.dtype == dtype for x in gradients)
    gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
    assert_close(gradients, expected_gradients, 2 * float(jnp.finfo(dtype).eps))


def test_products_of_half_precision_take_no_wider_factors():
    parameters, _, keys = arrays(dtype=jnp.bfloat16)
    total = lambda parameters: linear_sd_dropout_loss(*parameters, keys).sum()  # noqa: E731
    traced = equations(jax.make_jaxpr(jax.grad(total))(parameters).jaxpr)
    products = [e for e in traced if e.primitive.name == "dot_general"]
    assert len(products) == 4  # the logits, twice, and the gradients by features and kernel
    for product in products:
        assert [factor.aval.dtype for factor in product.invars] == [jnp.bfloat16] * 2
        assert product.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize("half", [(1, 2), (0,)], ids=str)
def test_dtypes_may_differ(half):
    """As with a head of half precision under features of float32, or the reverse."""
    parameters, weights, keys = arrays(dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), parameters)
    given = tuple(parameters[i] if i in half else wide[i] for i in range(3))
    of_parameters = partial(losses_and_gradients, linear_sd_dropout_loss)
    losses, gradients = of_parameters(given, weights, keys, CHUNKED)
    expected, _ = of_parameters(wide, weights.astype(jnp.float32), keys, CHUNKED)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert [g.dtype for g in gradients] == [x.dtype for x in given]


# --------------------------------------------------------------------------- transformations


def mean_loss(kernel, features, keys):
    return linear_sd_dropout_loss(features, kernel, None, keys, chunk_size=CHUNK).mean()


@pytest.fixture(scope="module")
def undivided():
    """Kernel, features and keys, and the plain loss and its gradients for them."""
    (features, kernel, _), _, keys = arrays(bias=False)

    def loss(kernel, features):
        return plain_sd_dropout(features, kernel, None, keys).mean()

    return (kernel, features, keys), jax.jit(jax.value_and_grad(loss, (0, 1)))(kernel, features)


def test_vmap_over_examples(undivided):
    given, expected = undivided
    one = jax.vmap(jax.value_and_grad(mean_loss, (0, 1)), (None, 0, 0))
    losses, (of_kernel, of_features) = jax.jit(one)(*given)
    actual = losses.mean(), (of_kernel.mean(axis=0), of_features / 4)
    assert_close(actual, expected, 1e-6)


def test_pmap(undivided):
    (kernel, features, keys), (_, (of_kernel, _)) = undivided

    def gradient(kernel, features, keys):
        return jax.lax.pmean(jax.grad(mean_loss)(kernel, features, keys), "device")

    divided = jax.pmap(gradient, "device", in_axes=(None, 0, 0), devices=jax.devices()[:2])
    of_devices = divided(kernel, features.reshape(2, 2, -1), keys.reshape(2, 2))
    for actual in of_devices:
        assert_close(actual, of_kernel, 1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(undivided, check_vma):
    given, expected = undivided
    mesh = Mesh(np.array(jax.devices()[:2]), ("device",))
    whole, batch = PartitionSpec(), PartitionSpec("device")

    def step(kernel, features, keys):
        if check_vma:  # gradients by replicated parameters come out summed
            return jax.value_and_grad(
                lambda *given: jax.lax.pmean(mean_loss(*given), "device"), (0, 1)
            )(kernel, features, keys)
        loss, (of_kernel, of_features) = jax.value_and_grad(mean_loss, (0, 1))(
            kernel, features, keys
        )
        return *jax.lax.pmean((loss, of_kernel), "device"), of_features / 2

    divided = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(whole, batch, batch),
        out_specs=(whole, (whole, batch)) if check_vma else (whole, whole, batch),
        check_vma=check_vma,
    )
    loss, *gradients = jax.tree.leaves(jax.jit(divided)(*given))
    assert_close((loss, tuple(gradients)), expected, 1e-6)


def test_shard_map_of_the_cross_entropy():
    (features, kernel, bias), _, _ = arrays()
    labels = labels_of((features, kernel, bias))
    mesh = Mesh(np.array(jax.devices()[:2]), ("device",))
    whole, batch = PartitionSpec(), PartitionSpec("device")

    def gradient(kernel, bias, features, labels):
        def loss(kernel, bias):
            losses = linear_cross_entropy(features, kernel, bias, labels, chunk_size=CHUNK)
            return jax.lax.psum(losses.sum(), "device")

        return jax.grad(loss, (0, 1))(kernel, bias)

    divided = jax.shard_map(
        gradient, mesh=mesh, in_specs=(whole, whole, batch, batch), out_specs=whole
    )
    _, (_, *expected) = losses_and_gradients(
        plain_cross_entropy, (features, kernel, bias), jnp.ones(4), labels
    )
    actual = jax.jit(divided)(kernel, bias, features, labels)
    assert_close(actual, tuple(expected), 1e-6)


def test_temperature_may_be_traced_and_has_no_gradient():
    parameters, _, keys = arrays()

    @jax.jit
    def value_and_gradient(temperature):
        def loss(temperature):
            options = {"temperature": temperature, "chunk_size": CHUNK}
            return linear_sd_dropout_loss(*parameters, keys, **options).sum()

        return jax.value_and_grad(loss)(temperature)

    value, gradient = value_and_gradient(2.0)
    expected = jax.jit(partial(plain_sd_dropout, temperature=2.0))(*parameters, keys).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert gradient == 0


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"temperature": 0.0}, r"temperature must be greater than 0 and finite, got 0.0"),
        ({"temperature": np.inf}, r"temperature must be greater than 0 and finite, got inf"),
        ({"gradient": "none"}, r"gradient must be one of both, forward, reverse, got 'none'"),
        ({"chunk_size": 0}, r"chunk_size must be at least 1, got 0"),
        ({"rate": 0.3, "exclusive": True}, r"must be at most 1, got 2 \* \(1 - 0.3\)"),
    ],
    ids=str,
)
def test_bad_options_are_errors(options, message):
    parameters, _, keys = arrays()
    with pytest.raises(ValueError, match=message):
        linear_sd_dropout_loss(*parameters, keys, **options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 6), (5, 21), None), r"\[..., D\] and kernel \[D, K\], got \(4, 6\) and \(5, 21\)"),
        (((4, 6), (6,), None), r"\[..., D\] and kernel \[D, K\], got \(4, 6\) and \(6,\)"),
        (((), (6, 21), None), r"\[..., D\] and kernel \[D, K\], got \(\) and \(6, 21\)"),
        (((4, 6), (6, 21), (6,)), r"bias must be \[K\], \(21,\), or None, got \(6,\)"),
        (((4, 6), (6, 21), (1, 21)), r"bias must be \[K\], \(21,\), or None, got \(1, 21\)"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_errors(shapes, message):
    parameters = [None if shape is None else jnp.zeros(shape) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        linear_sd_dropout_loss(*parameters, KEY)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*parameters, jnp.zeros(4, jnp.int32))


def test_bad_labels_and_dtypes_are_errors():
    (features, kernel, bias), _, keys = arrays()
    with pytest.raises(TypeError, match="labels must be integers, got float32"):
        linear_cross_entropy(features, kernel, bias, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"without the last axis, \(4,\), got \(3,\)"):
        linear_cross_entropy(features, kernel, bias, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got -1"):
        linear_cross_entropy(features, kernel, bias, jnp.zeros(4, jnp.int32), chunk_size=-1)
    for wrong in [(features.astype(int), kernel, bias), (features, kernel.astype(int), bias)]:
        with pytest.raises(TypeError, match="must be floating-point, got int32"):
            linear_sd_dropout_loss(*wrong, keys)
