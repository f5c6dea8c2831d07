"""layers.py: names, order and sharing of parameters; initial weights; the keys of dropout."""

import numpy as np
import pytest

from mini_pkd import fused
from mini_pkd.layers import NO_DROPOUT, DropoutKeys, Embedding, LayerNorm, Linear, Module, parameter
from mini_pkd.tensor import Tensor


class Inner(Module):
    def __init__(self, rng):
        self.linear = Linear(2, 3, rng)
        self.scale = parameter(np.ones(4))


class Outer(Module):
    def __init__(self, rng):
        self.size = 5  # neither parameter nor module: not listed
        self.first = Embedding(4, 2, rng)
        self.blocks = [Inner(rng), Inner(rng)]
        self.constant = Tensor(np.ones(3))  # needs no gradient: not a parameter
        self.last = LayerNorm(3)
        self.names = ["a", "b"]


def test_names_follow_the_attributes_in_the_order_of_creation():
    names = list(Outer(np.random.default_rng(0)).named_parameters())
    assert names == [
        "first.table",
        "blocks.0.linear.weight", "blocks.0.linear.bias", "blocks.0.scale",
        "blocks.1.linear.weight", "blocks.1.linear.bias", "blocks.1.scale",
        "last.gain", "last.bias",
    ]  # fmt: skip


def test_num_parameters():
    assert Outer(np.random.default_rng(0)).num_parameters() == 4 * 2 + 2 * (2 * 3 + 3 + 4) + 3 + 3


def test_a_tensor_with_two_names_inside_a_module_appears_once():
    """Twice it would get two places in the optimizer's buffer, of which one is forgotten."""

    class Tied(Module):
        def __init__(self):
            self.a = parameter(np.ones(3))
            self.b = self.a
            self.layers = [Linear(2, 3, np.random.default_rng(0))] * 2
            self.again = self.layers[0]

    assert list(Tied().named_parameters()) == ["a", "layers.0.weight", "layers.0.bias"]
    assert Tied().num_parameters() == 3 + 9


def test_named_parameters_are_the_tensors_themselves():
    module = Outer(np.random.default_rng(0))
    module.named_parameters()["blocks.1.scale"].data = np.full(4, 7.0)
    assert (module.blocks[1].scale.data == 7).all()


def test_astype_converts_all_of_them():
    module = Outer(np.random.default_rng(0))
    assert module.astype(np.float64) is module
    assert {p.data.dtype for p in module.named_parameters().values()} == {np.dtype(np.float64)}


def test_equal_seeds_give_equal_weights_and_others_do_not():
    a, b, c = (Outer(np.random.default_rng(seed)).named_parameters() for seed in (1, 1, 2))
    assert all(np.array_equal(a[name].data, b[name].data) for name in a)
    assert not np.array_equal(a["first.table"].data, c["first.table"].data)


def test_initial_weights():
    rng = np.random.default_rng(0)
    linear = Linear(100, 400, rng)
    assert np.abs(linear.weight.data).max() <= 0.1 and abs(linear.weight.data.std() - 0.1 / np.sqrt(3)) < 1e-3
    assert linear.weight.shape == (100, 400) and linear.bias.shape == (400,)
    assert 0.05 < np.abs(linear.bias.data).max() <= 0.1  # not zero: see the head of layers.py
    table = Embedding(400, 100, rng).table
    assert table.shape == (400, 100) and abs(table.data.std() - 0.1) < 2e-3
    for module in (linear, LayerNorm(3), Embedding(3, 2, rng)):
        assert all(p.data.dtype == np.float32 and p.requires_grad for p in module.named_parameters().values())


def test_layers_call_their_operations():
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((5, 6)))
    linear, table = Linear(6, 3, rng, np.float64), Embedding(7, 2, rng, np.float64)
    np.testing.assert_array_equal(linear(x).data, fused.linear(x, linear.weight, linear.bias).data)
    np.testing.assert_array_equal(table(np.array([6, 0])).data, table.table.data[[6, 0]])
    for swish in (False, True):
        norm = LayerNorm(6, swish=swish, dtype=np.float64)
        norm.gain.data[:] = rng.standard_normal(6)
        expected = fused.layer_norm(x, norm.gain, norm.bias, swish=swish).data
        np.testing.assert_array_equal(norm(x).data, expected)


def test_dropout_keys_come_from_the_generator_one_by_one():
    a, b = (DropoutKeys(0.1, np.random.default_rng(5)) for _ in range(2))
    drawn = [a.next() for _ in range(1000)]
    assert drawn == [b.next() for _ in range(1000)]
    assert {rate for rate, _ in drawn} == {0.1}
    keys = np.array([key for _, key in drawn])
    assert len(set(keys)) == 1000 and keys.min() >= 0 and 2**31 < keys.max() < 2**32  # all 32 bits are used
    assert all(type(key) is int for _, key in drawn)  # numba would compile a kernel per integer type


def test_no_dropout():
    assert NO_DROPOUT.next() == (0.0, 0) and DropoutKeys(0).next() == (0.0, 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_impossible_rates(rate):
    with pytest.raises(ValueError, match="outside"):
        DropoutKeys(rate, np.random.default_rng(0))
