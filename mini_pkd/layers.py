"""Modules: parameters with names, and the layers that every part of the model is built from.

A module is a plain object whose attributes are parameters (Tensors), other modules, or lists of modules.
Names follow the attributes ("encoder.blocks.3.attention.qkv.weight"), in the order of their creation:
that order is the layout of checkpoints and of the optimizer's flat buffer.

Weights and biases are drawn uniformly in +-1/sqrt(inputs).  Zero biases would be a trap here: an input row that
SpecAugment has hidden (set to zero) would stay zero through a new network, and the layer norm of a zero row multiplies
gradients by 1/sqrt(epsilon) = 316, layer after layer.
"""

import numpy as np

from . import fused, ops
from .tensor import Tensor


def parameter(values):
    """A leaf tensor that training will change."""
    return Tensor(values, requires_grad=True)


class Module:
    """Base class of everything that holds parameters."""

    def named_parameters(self, prefix=""):
        """{"blocks.0.norm.gain": Tensor, ...} in order of creation; a tensor with two names appears once."""
        found, seen = {}, set()
        for name, value in vars(self).items():
            inside = {}
            if isinstance(value, Tensor):
                inside = {prefix + name: value} if value.requires_grad else {}
            elif isinstance(value, Module):
                inside = value.named_parameters(f"{prefix}{name}.")
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        inside |= item.named_parameters(f"{prefix}{name}.{i}.")
            for key, tensor in inside.items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[key] = tensor
        return found

    def num_parameters(self):
        """How many numbers training changes."""
        return sum(p.data.size for p in self.named_parameters().values())

    def astype(self, dtype):
        """Convert every parameter in place (float64 for gradient checks); returns self."""
        for p in self.named_parameters().values():
            p.data = p.data.astype(dtype)
        return self


class Linear(Module):
    """y = x W + b.  `weight` (I, O), `bias` (O,)."""

    def __init__(self, inputs, outputs, rng, dtype=np.float32):
        bound = 1 / np.sqrt(inputs)
        self.weight = parameter(rng.uniform(-bound, bound, (inputs, outputs)).astype(dtype))
        self.bias = parameter(rng.uniform(-bound, bound, outputs).astype(dtype))

    def __call__(self, x):
        return fused.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    """Brings each row to mean 0 and variance 1, then applies gain and bias, and swish if asked."""

    def __init__(self, width, swish=False, dtype=np.float32):
        self.gain, self.bias = parameter(np.ones(width, dtype)), parameter(np.zeros(width, dtype))
        self.swish = swish

    def __call__(self, x):
        return fused.layer_norm(x, self.gain, self.bias, swish=self.swish)


class Embedding(Module):
    """A table (V, J) of one row per symbol."""

    def __init__(self, symbols, width, rng, dtype=np.float32):
        self.table = parameter((rng.standard_normal((symbols, width)) / np.sqrt(width)).astype(dtype))

    def __call__(self, ids):
        return ops.embedding(self.table, ids)


class DropoutKeys:
    """The dropout of one training step: a rate, and a new 32-bit key for each place that drops.

    The keys come from `rng`, which the training loop derives from (seed, model, step): a resumed run drops
    the same elements.  NO_DROPOUT has rate 0.
    """

    def __init__(self, rate, rng=None):
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate {rate} is outside [0, 1)")
        self.rate, self._rng = float(rate), rng

    def next(self):
        """(rate, key) of the next dropout."""
        return self.rate, int(self._rng.integers(2**32)) if self.rate else 0


NO_DROPOUT = DropoutKeys(0.0)


def demo():
    rng, pair = np.random.default_rng(0), Module()
    pair.norm, pair.halves = LayerNorm(3), [Linear(3, 2, rng), Linear(3, 2, rng)]
    for name, p in pair.named_parameters().items():
        print(f"{name:18s} {p.shape}")
    print("numbers in all:", pair.num_parameters(), "= 2 x 3 + 2 x (3 x 2 + 2)")


if __name__ == "__main__":
    demo()
