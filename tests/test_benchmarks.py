"""What benchmarks compute themselves: the operations of a step."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flop import flop

IMAGE, KERNEL = jnp.zeros((2, 9, 8, 4)), jnp.zeros((3, 3, 4, 6))


def convolution(x, kernel, stride, padding):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding,) * 2] * 2, dimension_numbers=dimensions)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1), (2, 3)])
def test_convolutions_and_their_gradients_count_as_xla_counts_them(stride, padding):
    def squares(x, kernel):
        return jnp.sum(convolution(x, kernel, stride, padding))

    for function in (lambda x, k: convolution(x, k, stride, padding), jax.grad(squares, 0), jax.grad(squares, 1)):
        traced = jax.jit(function).trace(IMAGE, KERNEL)
        xla = traced.lower().compile().cost_analysis()["flops"]
        assert flop(traced) == pytest.approx(xla, rel=0.03)  # XLA counts the additions outside, too


def test_a_loop_counts_as_often_as_it_runs_and_what_nobody_uses_does_not():
    matrix = jnp.zeros((8, 8))

    def powers(a):
        _ = a @ a @ a
        return jax.lax.scan(lambda power, _: (power @ a, None), a, None, length=5)[0]

    assert flop(jax.jit(powers).trace(matrix)) == 5 * 2 * 8**3


def test_a_choice_counts_its_longer_branch():
    def chosen(a):
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a @ a @ a, a)

    assert flop(jax.jit(chosen).trace(jnp.zeros((4, 4)))) == 2 * 2 * 4**3
