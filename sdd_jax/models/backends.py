"""One function, written for more than one backend."""

from collections.abc import Callable

import jax
from jax import lax


def per_backend(*, cpu: Callable, default: Callable) -> Callable:
    """A function that is computed by ``cpu`` on CPUs and by ``default`` elsewhere.

    Both must compute the same of the same arrays; the choice is made when the program is compiled. The
    gradient is the chosen one's own. Only the arguments are kept for it: JAX would otherwise keep the
    intermediate values of both. (Forward-mode differentiation is not defined.)
    """

    @jax.custom_vjp
    def function(*arrays):
        return lax.platform_dependent(*arrays, cpu=cpu, default=default)

    def backward(arrays, gradient):
        def pullback(of):
            return lambda arrays, gradient: jax.vjp(of, *arrays)[1](gradient)

        return lax.platform_dependent(
            arrays, gradient, cpu=pullback(cpu), default=pullback(default)
        )

    function.defvjp(lambda *arrays: (function(*arrays), arrays), backward)
    return function
