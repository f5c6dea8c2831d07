"""The tape: a Tensor remembers how it was made, and `backward()` walks that memory in reverse.

There is no arithmetic here.  An operation (see ops.py) computes its value with numpy or numba and
calls `record(value, parents, backward)`, where `backward(cotangent)` returns one gradient per parent.
Reverse-mode differentiation is then bookkeeping: visit the nodes from the newest to the oldest, hand
each its accumulated cotangent, add what it returns to its parents.  A node is always newer than its
parents, so sorting by creation number *is* a topological order, and no recursion is needed: a chain of
a million operations works as well as a chain of three.

Two rules keep this right:

- Nobody writes into an array that the tape still needs: an operation's inputs and outputs are
  read-only from the moment they are recorded.
- A gradient array that was handed in belongs to whoever made it (it may be shared by two parents, as in
  `add`), so the tape never adds into it in place; it makes its own sum on the second contribution.
  Parameters are the exception: `grad` of a leaf may be preset to a buffer (optimizer.py lays all of them
  end to end), and gradients are then added into that buffer.

Left out on purpose: second derivatives, views, in-place operations, devices.
"""

import contextlib
import itertools
import threading

import numpy as np

_serial = itertools.count()


class _Recording(threading.local):
    """Each thread's own switch, at first on: with one for all, two no_grad() that overlap could leave it off."""

    on = True


_recording = _Recording()


class Tensor:
    """A numpy array that may sit on the tape.

    data           the array; float32 in training, float64 in gradient checks
    grad           for leaves that require a gradient: the accumulated gradient, else None
    requires_grad  whether backward() should reach this tensor
    """

    __slots__ = ("data", "grad", "requires_grad", "_parents", "_backward", "_adds", "_serial")

    def __init__(self, data, requires_grad=False):
        self.data = np.asarray(data)
        self.grad = None
        self.requires_grad = requires_grad
        self._parents = ()
        self._backward = None
        self._adds = False
        self._serial = next(_serial)

    @property
    def shape(self):
        return self.data.shape

    def __repr__(self):
        return f"Tensor{self.data.shape}, {self.data.dtype}{', requires_grad' if self.requires_grad else ''}"

    def backward(self, cotangent=None):
        """Add d(self . cotangent)/d(leaf) to `grad` of every leaf below; a scalar needs no cotangent.

        The tape is consumed: closures, and with them the saved activations, are dropped as soon as they
        have been used, so memory falls while the walk proceeds, and a second call would find nothing.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward() of a tensor that needs no gradient: it was made under no_grad(), or from constants alone; "
                "make it without no_grad() from a tensor that has requires_grad=True"
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
        nodes = _recorded(self)
        nodes.sort(key=lambda node: node._serial)
        cotangents = {id(self): cotangent}
        ours = set()  # cotangents that we summed ourselves, so may add to in place
        while nodes:
            node = nodes.pop()
            cotangent = cotangents.pop(id(node), None)
            backward, parents = node._backward, node._parents
            if backward is _consumed:
                raise RuntimeError("backward() a second time through the same tape: run the forward pass again")
            node._backward, node._parents = _consumed, ()
            if cotangent is None:
                continue
            ours.discard(id(node))
            if node._adds:
                gradients = backward(cotangent, cotangents.pop(id(parents[0]), None))
            else:
                gradients = backward(cotangent)
            for parent, gradient in zip(parents, gradients, strict=True):
                if gradient is None or not parent.requires_grad:
                    continue
                assert gradient.shape == parent.shape, (gradient.shape, parent.shape, backward)
                key = id(parent)
                if parent._backward is None:  # a leaf takes it at once: no second set of gradients in memory
                    _add_to_leaf(parent, gradient)
                elif key not in cotangents:
                    cotangents[key] = gradient
                elif key in ours:
                    cotangents[key] += gradient
                else:
                    cotangents[key] = cotangents[key] + gradient
                    ours.add(key)
            del backward, parents, cotangent, gradients  # the saved activations die here


def _recorded(root):
    """Every operation's result that backward() has to pass through, `root` included, leaves not."""
    seen, found, stack = {id(root)}, [], [root]
    while stack:
        node = stack.pop()
        if node._backward is None:
            continue
        found.append(node)
        for parent in node._parents:
            if id(parent) not in seen:
                seen.add(id(parent))
                stack.append(parent)
    return found


def _add_to_leaf(leaf, cotangent):
    if leaf.grad is None:
        leaf.grad = cotangent.copy()  # ours from now on: the cotangent may be shared
    else:
        leaf.grad += cotangent


def _consumed(cotangent):
    raise AssertionError("never called: a marker for nodes whose closure backward() has dropped")


def record(value, parents, backward, adds=False):
    """Put `value` on the tape.  `backward(cotangent)` returns one array (or None) per parent.

    adds: an operation that can add while it writes anyway.  It is called as `backward(cotangent, pending)`, where
    `pending` is what the first parent has received so far (or None), and returns the sum in a new array.
    """
    out = Tensor(value)
    if _recording.on and any(parent.requires_grad for parent in parents):
        out.requires_grad = True
        out._parents = tuple(parents)
        out._backward, out._adds = backward, adds
    return out


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


if __name__ == "__main__":
    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    square = record(x.data**2, [x], lambda g: (g * 2 * x.data,))
    total = record(square.data.sum(), [square], lambda g: (np.full(3, g),))
    total.backward()
    print(f"f(x) = sum of squares of {x.data} = {total.data}; df/dx = 2x = {x.grad}")
