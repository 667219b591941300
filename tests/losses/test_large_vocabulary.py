"""Losses over chunks of classes: values and gradients of the plain losses, in less memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from sdd_jax import cross_entropy, linear_cross_entropy, linear_sd_dropout_loss, sd_dropout_loss

CHUNK = 8
CHUNKED = (("chunk_size", CHUNK),)
NUM_CLASSES = [5, 8, 16, 21]  # below one chunk, one, two, and two and a part
KEY = jax.random.key(0)
both_losses = pytest.mark.parametrize("loss", [linear_sd_dropout_loss, linear_cross_entropy])


def arrays(shape=(4, 6), num_classes=21, bias=True, dtype=np.float32, scale=1.0):
    """Features, kernel and bias; weights of the examples; and a key for each example."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) * scale, dtype)  # noqa: E731
    parameters = draw(*shape), draw(shape[-1], num_classes), draw(num_classes) if bias else None
    weights = jnp.asarray(random.uniform(1, 2, size=shape[:-1]), dtype)
    return parameters, weights, jax.random.split(KEY, shape[:-1])


def labels_of(parameters):
    features, kernel, _ = parameters
    random = np.random.default_rng(1)
    return jnp.asarray(random.integers(kernel.shape[1], size=features.shape[:-1]), jnp.int32)


def keys_or_labels(loss, parameters, keys):
    return keys if loss is linear_sd_dropout_loss else labels_of(parameters)


def logits_of(features, kernel, bias):
    logits = features @ kernel
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)


def plain_sd_dropout(features, kernel, bias, key, **options):
    return sd_dropout_loss(features, lambda f: logits_of(f, kernel, bias), key, **options)


def plain_cross_entropy(features, kernel, bias, labels):
    return cross_entropy(logits_of(features, kernel, bias), labels)


@partial(jax.jit, static_argnames=("loss", "options"))
def losses_and_gradients(loss, parameters, weights, key_or_labels, options=()):
    """Per-example losses, and the gradients of their weighted sum."""

    def weighted(parameters):
        losses = loss(*parameters, key_or_labels, **dict(options))
        return jnp.sum(losses * weights.astype(losses.dtype)), losses

    gradients, losses = jax.grad(weighted, has_aux=True)(parameters)
    return losses, gradients


def assert_close(actual, expected, tolerance, least=1.0):
    """Relative to the largest element of each array, or to ``least``: some are zero but for noise."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype)
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * max(least, np.abs(e).max()))


def assert_equals_plain_sd_dropout(args, tolerance, chunk_size=CHUNK, **options):
    options = tuple(options.items())
    expected = losses_and_gradients(plain_sd_dropout, *args, options)
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 0.1
    chunked = (*options, ("chunk_size", chunk_size))
    actual = losses_and_gradients(linear_sd_dropout_loss, *args, chunked)
    assert_close(actual[0], expected[0], tolerance)
    # Where posteriors are one-hot, terms as large as losses times parameters cancel in the gradients.
    parameter = max(np.abs(x).max() for x in jax.tree.leaves(args[0]))
    least = max(1.0, np.abs(expected[0]).max() * parameter)
    assert_close(actual[1], expected[1], tolerance, least)


@pytest.mark.parametrize(
    ("num_classes", "gradient"),
    [*((n, "both") for n in NUM_CLASSES), (21, "forward"), (21, "reverse")],
)
def test_sd_dropout_in_chunks_equals_the_plain_loss(num_classes, gradient):
    with jax.enable_x64(True):
        args = arrays(num_classes=num_classes, dtype=np.float64)
        assert_equals_plain_sd_dropout(args, 1e-12, gradient=gradient)


@pytest.mark.parametrize(("num_classes", "scale"), [*((n, 1.0) for n in NUM_CLASSES), (21, 100.0)])
def test_cross_entropy_in_chunks_equals_the_plain_loss(num_classes, scale):
    with jax.enable_x64(True):
        parameters, weights, _ = arrays((2, 3, 6), num_classes, dtype=np.float64, scale=scale)
        args = parameters, weights, labels_of(parameters)
        expected = losses_and_gradients(plain_cross_entropy, *args)
        assert_close(losses_and_gradients(linear_cross_entropy, *args, CHUNKED), expected, 1e-12)


@pytest.mark.parametrize(("shape", "chunk_size"), [((6,), 7), ((2, 3, 6), 1)], ids=str)
def test_any_chunk_size_and_leading_dimensions_without_bias(shape, chunk_size):
    assert_equals_plain_sd_dropout(arrays(shape, bias=False), 1e-5, chunk_size)


def test_no_examples():
    losses, gradients = losses_and_gradients(linear_sd_dropout_loss, *arrays((0, 6)), CHUNKED)
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
    assert_equals_plain_sd_dropout((parameters, weights, KEY), 1e-5, **options)


def test_defaults_are_those_of_the_plain_loss():
    actual = losses_and_gradients(linear_sd_dropout_loss, *arrays())
    assert_close(actual, losses_and_gradients(plain_sd_dropout, *arrays()), 1e-5)


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
        args = arrays(dtype=dtype, scale=100.0)
        assert np.abs(logits_of(*args[0])).max() > 1e4
        assert_equals_plain_sd_dropout(args, tolerance, gradient=gradient, temperature=1.0)


@both_losses
def test_large_common_logits_cost_no_digits(loss):
    """Integer logits are exact in float32, also next to 2^14: the losses must be the same."""
    random = np.random.default_rng(0)
    integers = lambda *shape: jnp.asarray(random.integers(-1, 2, size=shape), jnp.float32)  # noqa: E731
    features, kernel, bias = integers(4, 6), integers(6, 21), jnp.zeros(21)
    last = keys_or_labels(loss, (features, kernel, bias), KEY)
    options = (*CHUNKED, ("temperature", 1.0)) if loss is linear_sd_dropout_loss else CHUNKED
    actual, expected = (
        losses_and_gradients(loss, (features, kernel, bias + large), jnp.ones(4), last, options)
        for large in (2**14, 0)
    )
    assert_close(actual, expected, 2e-6)


@both_losses
def test_bias_of_minus_a_billion_excludes_classes(loss):
    (features, kernel, bias), weights, keys = arrays()
    # All classes of one chunk, some of another, none of the last.
    keep = np.array([False] * 5 + [False] * 8 + [True] * 3 + [True] * 5)
    labels = jnp.asarray([0, 3, 7, 2], jnp.int32)  # among the kept classes
    last, last_of_all = keys, keys
    if loss is linear_cross_entropy:
        last, last_of_all = labels, labels + np.int32(13)
    removed = (features, kernel[:, keep], bias[keep])
    expected = losses_and_gradients(loss, removed, weights, last, CHUNKED)
    excluded = (features, kernel, jnp.where(keep, bias, -1e9))
    losses, gradients = losses_and_gradients(loss, excluded, weights, last_of_all, CHUNKED)
    features_grad, kernel_grad, bias_grad = gradients
    actual = losses, (features_grad, kernel_grad[:, keep], bias_grad[keep])
    assert_close(actual, expected, 1e-5)
    np.testing.assert_array_equal(kernel_grad[:, ~keep], 0)


@pytest.mark.parametrize("outside", [-100, -1, 21])
def test_ignored_positions_may_have_labels_outside_the_classes(outside):
    parameters, _, _ = arrays()
    labels, counts = labels_of(parameters), jnp.asarray([1.0, 0.0, 1.0, 0.0])
    with_labels = partial(losses_and_gradients, linear_cross_entropy, parameters, counts)
    losses, gradients = with_labels(jnp.where(counts > 0, labels, outside), CHUNKED)
    expected, expected_gradients = with_labels(labels, CHUNKED)
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(losses[counts > 0], expected[counts > 0])
    assert_close(gradients, expected_gradients, 1e-7)


# --------------------------------------------------------------------------- memory and precision


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)  # unwraps a closed jaxpr
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize("differentiate", [False, True])
@both_losses
def test_no_array_is_as_large_as_examples_times_classes(loss, differentiate):
    batch, features, num_classes = 64, 16, 256
    parameters, _, keys = arrays((batch, features), num_classes)
    last = keys_or_labels(loss, parameters, keys)
    plain = plain_sd_dropout if loss is linear_sd_dropout_loss else plain_cross_entropy

    def largest(loss):
        total = lambda parameters: loss(*parameters, last).sum()  # noqa: E731
        fn = jax.value_and_grad(total) if differentiate else total
        traced = equations(jax.make_jaxpr(fn)(parameters).jaxpr)
        return max(variable.aval.size for equation in traced for variable in equation.outvars)

    # The kernel's gradient has features * num_classes elements.
    assert largest(partial(loss, chunk_size=16)) <= max(features * num_classes, 2 * batch * 16)
    assert largest(plain) >= batch * num_classes


@both_losses
def test_gradients_in_half_precision_are_those_of_float32(loss):
    parameters, weights, keys = arrays(dtype=jnp.bfloat16)
    last = keys_or_labels(loss, parameters, keys)
    _, gradients = losses_and_gradients(loss, parameters, weights, last, CHUNKED)
    # The same numbers in float32. (At rate 1/2, dropout doubles, which rounds in no dtype.)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (parameters, weights))
    _, expected = losses_and_gradients(loss, *wide, last, CHUNKED)
    gradients = jax.tree.map(lambda x: x.astype(jnp.float32), gradients)
    assert_close(gradients, expected, 2 * float(jnp.finfo(jnp.bfloat16).eps))


def test_products_of_half_precision_take_no_wider_factors():
    parameters, _, keys = arrays(dtype=jnp.bfloat16)
    total = lambda parameters: linear_sd_dropout_loss(*parameters, keys).sum()  # noqa: E731
    traced = equations(jax.make_jaxpr(jax.grad(total))(parameters).jaxpr)
    products = [e for e in traced if e.primitive.name == "dot_general"]
    assert len(products) == 4  # the logits, twice, and the gradients of features and kernel
    for product in products:
        assert [factor.aval.dtype for factor in product.invars] == [jnp.bfloat16] * 2
        assert product.outvars[0].aval.dtype == jnp.float32


@pytest.mark.parametrize("half", [(1, 2), (0,)], ids=str)
def test_dtypes_may_differ(half):
    """As with a head in half precision and features in float32, or the reverse."""
    parameters, weights, keys = arrays(dtype=jnp.bfloat16)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), parameters)
    mixed = tuple(parameters[i] if i in half else wide[i] for i in range(3))
    args = weights.astype(jnp.float32), keys, CHUNKED
    losses, gradients = losses_and_gradients(linear_sd_dropout_loss, mixed, *args)
    expected, _ = losses_and_gradients(linear_sd_dropout_loss, wide, *args)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert [g.dtype for g in gradients] == [x.dtype for x in mixed]


# --------------------------------------------------------------------------- transformations


def mean_loss(kernel, features, keys):
    return linear_sd_dropout_loss(features, kernel, None, keys, chunk_size=CHUNK).mean()


@pytest.fixture(scope="module")
def whole_batch():
    """Kernel, features and keys; the plain loss and its gradients for them."""
    (features, kernel, _), _, keys = arrays(bias=False)

    def loss(kernel, features):
        return plain_sd_dropout(features, kernel, None, keys).mean()

    return (kernel, features, keys), jax.jit(jax.value_and_grad(loss, (0, 1)))(kernel, features)


def mesh():
    return Mesh(np.array(jax.devices()[:2]), ("device",)), PartitionSpec(), PartitionSpec("device")


def test_vmap_over_examples(whole_batch):
    args, expected = whole_batch
    one = jax.vmap(jax.value_and_grad(mean_loss, (0, 1)), (None, 0, 0))
    losses, (kernel_grad, features_grad) = jax.jit(one)(*args)
    assert_close((losses.mean(), (kernel_grad.mean(axis=0), features_grad / 4)), expected, 1e-6)


def test_pmap(whole_batch):
    (kernel, features, keys), (_, (kernel_grad, _)) = whole_batch

    def gradient(kernel, features, keys):
        return jax.lax.pmean(jax.grad(mean_loss)(kernel, features, keys), "device")

    sharded = jax.pmap(gradient, "device", in_axes=(None, 0, 0), devices=jax.devices()[:2])
    for actual in sharded(kernel, features.reshape(2, 2, -1), keys.reshape(2, 2)):
        assert_close(actual, kernel_grad, 1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(whole_batch, check_vma):
    args, expected = whole_batch
    devices, whole, batch = mesh()

    def step(kernel, features, keys):
        if check_vma:  # gradients of replicated parameters are summed
            return jax.value_and_grad(
                lambda *args: jax.lax.pmean(mean_loss(*args), "device"), (0, 1)
            )(kernel, features, keys)
        loss, (kernel_grad, features_grad) = jax.value_and_grad(mean_loss, (0, 1))(
            kernel, features, keys
        )
        return *jax.lax.pmean((loss, kernel_grad), "device"), features_grad / 2

    sharded = jax.shard_map(
        step,
        mesh=devices,
        in_specs=(whole, batch, batch),
        out_specs=(whole, (whole, batch)) if check_vma else (whole, whole, batch),
        check_vma=check_vma,
    )
    loss, *gradients = jax.tree.leaves(jax.jit(sharded)(*args))
    assert_close((loss, tuple(gradients)), expected, 1e-6)


def test_shard_map_of_the_cross_entropy():
    (features, kernel, bias), _, _ = arrays()
    labels = labels_of((features, kernel, bias))
    devices, whole, batch = mesh()

    def gradient(kernel, bias, features, labels):
        def loss(kernel, bias):
            losses = linear_cross_entropy(features, kernel, bias, labels, chunk_size=CHUNK)
            return jax.lax.psum(losses.sum(), "device")

        return jax.grad(loss, (0, 1))(kernel, bias)

    sharded = jax.shard_map(
        gradient, mesh=devices, in_specs=(whole, whole, batch, batch), out_specs=whole
    )
    _, (_, *expected) = losses_and_gradients(
        plain_cross_entropy, (features, kernel, bias), jnp.ones(4), labels
    )
    assert_close(jax.jit(sharded)(kernel, bias, features, labels), tuple(expected), 1e-6)


def test_temperature_has_no_gradient():
    parameters, _, keys = arrays()
    loss = lambda t: linear_sd_dropout_loss(*parameters, keys, temperature=t).sum()  # noqa: E731
    assert jax.jit(jax.grad(loss))(2.0) == 0


@both_losses
def test_forward_mode_is_refused(loss):
    parameters, _, keys = arrays()
    last = keys_or_labels(loss, parameters, keys)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(
            lambda features: loss(features, *parameters[1:], last), parameters[:1], parameters[:1]
        )


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
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
