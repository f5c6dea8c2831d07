"""The gradient checker: does backward() agree with what the function really does?

Take a function f of several arrays, a random direction v to move its input x in, and a random cotangent w of its
output.  With J the matrix of all derivatives of f at x, reverse mode must give

    <w, J v>  =  <J^T w, v>                where <a, b> is the sum of a * b

The left side is measured by central differences, [<w, f(x + h v)> - <w, f(x - h v)>] / 2h, whose error is
O(h^2) + O(eps / h); on the right, J^T w is what backward() leaves in x.grad.  The direction tests all inputs at once,
the cotangent all outputs.  A cotangent of all ones would not do: the rows of a softmax sum to one whatever its input,
so a softmax whose backward returns zeros would pass (the demo shows it).
"""

import numpy as np

from .tensor import Tensor, record


def gradcheck(function, inputs, cotangent=None, seed=0, step=1e-5, trials=3):
    """Largest relative disagreement over `trials` random (direction, cotangent) pairs, in float64.

    function   takes Tensors (one per input) and returns a Tensor
    inputs     arrays; they are copied to float64
    cotangent  a number or an array in place of the random ones, to see why they are needed

    Each input is also moved alone, so that a small wrong gradient cannot hide behind a large right one.
    A disagreement is |measured - claimed| relative to the larger of the two (or, where both are close to zero, to
    `scale` below).

    >>> bool(gradcheck(lambda x, y: x @ y, [np.eye(3), np.ones((3, 2))]) < 1e-8)
    True
    """
    rng = np.random.default_rng(seed)
    inputs = [np.array(x, dtype=np.float64) for x in inputs]
    worst = 0.0
    for _ in range(trials):
        tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
        out = function(*tensors)
        w = rng.standard_normal(out.shape) if cotangent is None else np.broadcast_to(cotangent, out.shape)
        out.backward(w)
        directions = [rng.standard_normal(x.shape) for x in inputs]
        terms = np.abs(w * out.data).sum()  # by rounding alone, a difference that should be 0 is some 1e-11 of this
        claims = [0.0 if t.grad is None else (t.grad * v).sum() for t, v in zip(tensors, directions, strict=True)]
        for moved in [*range(len(inputs)), "all"]:
            chosen = [v if moved in (i, "all") else np.zeros_like(v) for i, v in enumerate(directions)]
            plus, minus = ((w * _value(function, inputs, chosen, sign * step)).sum() for sign in (1, -1))
            measured = (plus - minus) / (2 * step)
            claimed = sum(claims) if moved == "all" else claims[moved]
            scale = max(abs(measured), abs(claimed), 1e-3 * max(map(abs, claims)), 1e-4 * terms, 1e-12)
            worst = max(worst, abs(measured - claimed) / scale)
    return float(worst)


def _value(function, inputs, directions, step):
    return function(*[Tensor(x + step * v) for x, v in zip(inputs, directions, strict=True)]).data


def demo():
    def tanh(t, factor=1):
        return record(np.tanh(t.data), [t], lambda g: (factor * g * (1 - np.tanh(t.data) ** 2),))

    def softmax(t):
        p = np.exp(t.data) / np.exp(t.data).sum(axis=1, keepdims=True)
        return record(p, [t], lambda g: (np.zeros_like(g),))

    x = np.random.default_rng(0).standard_normal((3, 4))
    print(f"tanh, gradient 1 - tanh^2:              disagreement {gradcheck(tanh, [x]):.1e}")
    print(f"tanh, gradient 0.1 % too big:           disagreement {gradcheck(lambda t: tanh(t, 1.001), [x]):.1e}")
    print(f"softmax, gradient 0, cotangent of ones: disagreement {gradcheck(softmax, [x], cotangent=1):.1e}")
    print(f"softmax, gradient 0, random cotangent:  disagreement {gradcheck(softmax, [x]):.1e}")


if __name__ == "__main__":
    demo()
