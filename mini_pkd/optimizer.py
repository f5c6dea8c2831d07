"""Adam (Kingma & Ba 2015), its learning-rate schedule, and clipping by the global norm.

With the gradient g of step t, for each weight w:

    m = b1 m + (1-b1) g        v = b2 v + (1-b2) g^2        w -= rate * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)

The class below lays all parameters end to end in one array and their gradients in another; every parameter's `data`
and `grad` become views.  Adam is then a single pass over four arrays, whatever the number of tensors.

What stands under `@kernel` (simd.py) is compiled by numba, and the rounds of its `prange` loop are shared among the
threads.  Its partner in plain numpy, `*_readable`, says what it computes.
"""

import math

import numpy as np
from numba import prange

from .simd import kernel

BETA1, BETA2, EPSILON = 0.9, 0.98, 1e-8
BLOCKS = 256  # the norm sums this many parts, always the same, so that the number of threads changes no bit


def learning_rate(step, total, peak, warmup, floor=0.0):
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine down to `floor` x peak at `total`.

    `step` counts from 1.  The paper says "1e-4 with decay"; the shape is our choice.

    >>> [round(learning_rate(s, 100, 1.0, 10), 3) for s in (1, 10, 55, 100)]
    [0.1, 1.0, 0.5, 0.0]
    """
    if step <= warmup:
        return peak * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def global_norm_readable(g):
    """The length of the gradient of all parameters, taken as one vector."""
    return math.sqrt((g.astype(np.float64) ** 2).sum())


def clip_factor(norm, clip):
    """The factor that shortens a gradient of length `norm` to `clip` if it is longer (0 or None: any length is fine).

    One huge gradient would otherwise fill m and v for many steps to come.

    >>> clip_factor(50.0, 5.0), clip_factor(3.0, 5.0)
    (0.1, 1.0)
    """
    return min(1.0, clip / norm) if clip and norm > 0 else 1.0


def adam_step_readable(w, g, m, v, t, rate):
    """Step t = 1, 2, ... of Kingma & Ba's algorithm 1, on arrays of one shape: -> the new (w, m, v)."""
    m = BETA1 * m + (1 - BETA1) * g  # where the gradients point, lately
    v = BETA2 * v + (1 - BETA2) * g**2  # how large they are, lately
    m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)  # m and v began at 0, and are too small at first
    return w - rate * m_hat / (np.sqrt(v_hat) + EPSILON), m, v


class Adam:
    """Owns the flat buffers of a module's parameters.

    values, gradients, m, v: arrays with one number for each that training changes.  backward() adds into `gradients`,
    `step` sets them to zero; `steps` counts the updates made.
    """

    def __init__(self, module, clip=5.0):
        tensors = list(module.named_parameters().values())
        if len({p.data.dtype for p in tensors}) != 1:  # concatenate would quietly make all of them float64
            raise TypeError("parameters of one module must have one dtype")
        self.clip, self.steps = clip, 0
        self.values = np.concatenate([p.data.ravel() for p in tensors])
        self.gradients, self.m, self.v = (np.zeros_like(self.values) for _ in range(3))
        start = 0
        for p in tensors:
            stop = start + p.data.size
            p.grad = self.gradients[start:stop].reshape(p.shape)
            p.data = self.values[start:stop].reshape(p.shape)
            start = stop

    def step(self, rate):
        """One update with the gradients as they are; returns their norm before clipping.

        If the norm is not finite, nothing is updated, and the caller counts it.  Gradients end at zero in any case.
        """
        partial = np.empty(BLOCKS)
        _squared_norms(self.gradients, partial)
        norm = math.sqrt(partial.sum())
        if not math.isfinite(norm):
            self.gradients[:] = 0
            return norm
        self.steps += 1
        shrink = clip_factor(norm, self.clip)
        correct1, correct2 = 1 - BETA1**self.steps, 1 - BETA2**self.steps
        _adam(self.values, self.gradients, self.m, self.v, shrink, rate / correct1, 1 / correct2)
        return norm

    def state(self):
        """What a checkpoint must hold, with `steps`, to continue to the same bits."""
        return {"values": self.values, "m": self.m, "v": self.v}

    def restore(self, arrays, steps):
        """Back to a saved state of the same sizes."""
        for name, array in self.state().items():
            array[:] = arrays[name]
        self.steps = steps


@kernel(fastmath=False, readable=global_norm_readable)  # so it sums in this order on every machine
def _squared_norms(gradients, partial):
    size = len(gradients)
    for block in prange(len(partial)):
        total = 0.0  # float64: a sum over 128 million squares
        for i in range(size * block // len(partial), size * (block + 1) // len(partial)):
            total += np.float64(gradients[i]) * np.float64(gradients[i])
        partial[block] = total


@kernel(readable=adam_step_readable)
def _adam(w, g, m, v, shrink, rate, correct2):
    f = w.dtype.type  # all constants in the type of w, or numba would compute in float64
    b1, b2, c1, c2 = f(BETA1), f(BETA2), f(1 - BETA1), f(1 - BETA2)
    shrink, rate, correct2, epsilon = f(shrink), f(rate), f(correct2), f(EPSILON)
    for i in prange(len(w)):
        gi = g[i] * shrink
        m[i] = b1 * m[i] + c1 * gi
        v[i] = b2 * v[i] + c2 * gi * gi
        w[i] -= rate * m[i] / (np.sqrt(v[i] * correct2) + epsilon)
        g[i] = f(0)


def demo():
    from .layers import Module, parameter

    point = Module()
    point.w = parameter(np.zeros(1, np.float32))
    adam = Adam(point, clip=1.0)
    for step in range(1, 201):
        point.w.grad += 2 * (point.w.data - 3)  # the gradient of (w - 3)^2
        norm = adam.step(learning_rate(step, 200, 0.1, 20))
        if step in (1, 2, 50, 100, 200):
            print(f"step {step:3d}: gradient norm {norm:.3f}, w = {point.w.data[0]:.4f}")
    print("the minimum is at 3; the first step moves w by the learning rate, 0.1 / 20")


if __name__ == "__main__":
    demo()
