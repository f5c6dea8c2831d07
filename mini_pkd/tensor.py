"""The tape: a Tensor remembers how it was made, and `backward()` goes through that memory in reverse.

    z = (x @ w) * y        the values are computed at once; each result remembers its parents
    z.backward(ones)       now w.grad holds, for each number in w, how much the sum of z changes with it

An operation computes its value with numpy or numba and calls `record(value, parents, backward)`.  Its parents are the
tensors it read; those that no operation made, such as x, w and y, are the leaves.  The cotangent of a tensor is the
gradient of the final number with respect to it, and `backward(cotangent of the value)` returns what this one operation
contributes to the cotangent of each parent.  The operators +, -, * and @ are here; ops.py has the rest.

Reverse-mode differentiation is then bookkeeping: visit the results from the newest to the oldest, hand each its
cotangent, and add what its `backward` returns to its parents' cotangents.  A result is always newer than its parents,
so sorting by creation number *is* a topological order, and a chain of a million operations needs no recursion.

Two rules keep this right:

- Nobody writes into an array that the tape still needs: an operation's inputs and outputs are
  read-only from the moment they are recorded.
- The tape never adds into a gradient array that an operation returned, because two parents may share it, as in x + y:
  every sum is a new array.  Only a leaf's `grad` is added to in place, so it may be preset to a part of some buffer
  (optimizer.py lays the gradients of all parameters end to end).

Left out on purpose: second derivatives, views, in-place operations, devices.
"""

import contextlib
import itertools
import threading

import numpy as np

_serial = itertools.count()
_consumed = object()  # takes the place of a `backward` that has been used and dropped


# --- a value that remembers how it was made -------------------------------------------------------


class Tensor:
    """A numpy array that may sit on the tape.

    data           the array; float32 in training, float64 in gradient checks
    grad           for leaves that require a gradient: the accumulated gradient, else None
    requires_grad  whether backward() should reach this tensor
    """

    __slots__ = ("data", "grad", "requires_grad", "_parents", "_backward", "_adds", "_serial")
    __array_ufunc__ = None  # in array * tensor, numpy then leaves the product to the tensor

    def __init__(self, data, requires_grad=False):
        self.data = np.asarray(data)
        self.grad, self.requires_grad = None, requires_grad
        self._parents, self._backward, self._adds = (), None, False
        self._serial = next(_serial)  # grows: results are newer than their parents

    @property
    def shape(self):
        return self.data.shape

    def __repr__(self):
        return f"Tensor{self.data.shape}, {self.data.dtype}{', requires_grad' if self.requires_grad else ''}"

    # Each operator: the value, and what its cotangent g contributes to both inputs.  Either may be broadcast, as a
    # bias is, and `other` may be a number or an array, which is a constant.

    def __add__(self, other):
        other = self._constant(other)
        return record(self.data + other.data, [self, other], lambda g: (_sum_to(g, self), _sum_to(g, other)))

    def __mul__(self, other):
        other = self._constant(other)

        def backward(g):
            return _sum_to(g * other.data, self), _sum_to(g * self.data, other)

        return record(self.data * other.data, [self, other], backward)

    def __matmul__(self, other):
        """The product of two matrices, (N, I) @ (I, O)."""
        other = self._constant(other)
        return record(self.data @ other.data, [self, other], lambda g: (g @ other.data.T, self.data.T @ g))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    __radd__, __rmul__ = __add__, __mul__  # 2 * x

    def _constant(self, other):
        """A number or an array becomes a Tensor of this one's type: float32 stays float32."""
        return other if isinstance(other, Tensor) else Tensor(np.asarray(other, self.data.dtype))

    def backward(self, cotangent=None):
        """Add the gradient of sum(self * cotangent) to `grad` of every leaf behind it; a scalar needs no cotangent.

        The tape is consumed: each `backward`, and with it the arrays it has saved, is dropped as soon as it
        has been used, so memory falls on the way, and a second call would find nothing.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() of a tensor that needs no gradient: make it outside no_grad(), from a leaf with "
                "requires_grad=True"
            )
        if cotangent is None:
            if self.data.size != 1:
                raise ValueError(f"backward() of a tensor of shape {self.shape} needs a cotangent")
            cotangent = np.ones_like(self.data)
        cotangent = np.asarray(cotangent, dtype=self.data.dtype)
        if cotangent.shape != self.shape:
            raise ValueError(f"cotangent of shape {cotangent.shape} for a tensor of shape {self.shape}")

        if self._backward is None:
            _add_to_leaf(self, cotangent)
            return
        nodes = sorted(_recorded(self), key=lambda node: node._serial)
        cotangents = {id(self): cotangent}  # of results that are still to be visited
        while nodes:
            node = nodes.pop()
            cotangent = cotangents.pop(id(node), None)
            backward, parents = node._backward, node._parents
            if backward is _consumed:
                raise RuntimeError("backward() a second time through the same tape: run the forward pass again")
            node._backward, node._parents = _consumed, ()
            if cotangent is None:  # all operations that used this result returned None for it
                continue
            if node._adds:  # an optimisation (see `record`); skip it at first reading
                gradients = backward(cotangent, cotangents.pop(id(parents[0]), None))
            else:
                gradients = backward(cotangent)
            for parent, gradient in zip(parents, gradients, strict=True):
                if gradient is None or not parent.requires_grad:
                    continue
                assert gradient.shape == parent.shape, (gradient.shape, parent.shape, backward)
                if parent._backward is None:  # a leaf takes it at once: no second set of gradients in memory
                    _add_to_leaf(parent, gradient)
                elif id(parent) in cotangents:
                    cotangents[id(parent)] = cotangents[id(parent)] + gradient
                else:
                    cotangents[id(parent)] = gradient
            del backward, parents, cotangent, gradients  # this frees what the operation had saved


def _sum_to(gradient, parent):
    """Undo numpy's broadcasting: a number that was used several times collects the gradients of all its uses."""
    if gradient.shape != parent.shape:
        gradient = gradient.sum(axis=tuple(range(gradient.ndim - parent.data.ndim)))  # axes that were put in front
        gradient = gradient.sum(axis=tuple(i for i, size in enumerate(parent.shape) if size == 1), keepdims=True)
    return gradient


def _recorded(root):
    """All results of operations behind `root`, and `root` itself, but no leaves."""
    found, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node._backward is not None and node not in found:
            found.add(node)
            stack.extend(node._parents)
    return found


def _add_to_leaf(leaf, cotangent):
    if leaf.grad is None:
        leaf.grad = cotangent.copy()  # ours from now on: the cotangent may be shared
    else:
        leaf.grad += cotangent


def record(value, parents, backward, adds=False):
    """Put `value` on the tape.  `backward(cotangent)` returns one array (or None) per parent.

    `adds` is an optimisation; skip it at first reading.  It lets an operation add to its first parent's gradient what
    this parent has received so far, which saves a pass over memory: it is called as `backward(cotangent, pending)`,
    with `pending` None if nothing has come, and returns the sum in a new array.
    """
    out = Tensor(value)
    if _recording.on and any(parent.requires_grad for parent in parents):
        out.requires_grad = True
        out._parents = tuple(parents)
        out._backward, out._adds = backward, adds
    return out


def graph(root):
    """The tape behind `root`, to draw: nodes [(operation, shape)], oldest first, and edges [(parent, result)].

    >>> x = Tensor(np.ones((2, 3)), requires_grad=True)
    >>> graph(x * x + x)
    ([('leaf', (2, 3)), ('mul', (2, 3)), ('add', (2, 3))], [(0, 1), (0, 1), (1, 2), (0, 2)])
    """
    found = {root}.union(*({result, *result._parents} for result in _recorded(root)))
    tensors = sorted(found, key=lambda tensor: tensor._serial)
    place = {tensor: i for i, tensor in enumerate(tensors)}
    edges = [(place[parent], place[result]) for result in tensors for parent in result._parents]
    names = [getattr(tensor._backward, "__qualname__", "leaf") for tensor in tensors]  # f.<locals>.backward
    names = [name.split(".<locals>")[0].split(".")[-1].strip("_") for name in names]
    return [(name, tensor.shape) for name, tensor in zip(names, tensors, strict=True)], edges


# --- when nothing is to be remembered -------------------------------------------------------------


class _Recording(threading.local):
    """A switch for each thread: with one for all, two no_grad() that overlap in time could leave it off."""

    on = True


_recording = _Recording()


def is_recording():
    """False inside no_grad(): an operation may then skip what it would save for backward."""
    return _recording.on


@contextlib.contextmanager
def no_grad():
    """Operations of this thread inside this block are not recorded: for decoding and for the teacher."""
    before, _recording.on = _recording.on, False
    try:
        yield
    finally:
        _recording.on = before


def demo():
    x, w, y = (Tensor(np.array(a, float), requires_grad=True) for a in ([[1, 2]], [[1, 0], [3, -1]], [[2, 5]]))
    print(f"x = {x.data.tolist()}, w = {w.data.tolist()}, y = {y.data.tolist()}; x @ w = {(x @ w).data.tolist()}")
    z = (x @ w) * y
    z.backward(np.ones(z.shape))
    print(f"(x @ w) * y = {z.data.tolist()}, and the gradients of the sum of these two numbers:")
    print(f"d/dy = x @ w = {y.grad.tolist()}")
    print(f"d/dx = y @ w^T = {x.grad.tolist()}   (2 * 1 + 5 * 0, 2 * 3 + 5 * -1)")
    print(f"d/dw = x^T @ y = {w.grad.tolist()}")


if __name__ == "__main__":
    demo()
