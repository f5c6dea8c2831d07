"""tensor.py: the bookkeeping of reverse mode, without any numerics worth the name."""

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

from mini_pkd.memory import keep_freed_memory
from mini_pkd.tensor import Tensor, graph, is_recording, no_grad, record


def add(x, y):
    return record(x.data + y.data, [x, y], lambda g: (g, g))


def multiply(x, y):
    return record(x.data * y.data, [x, y], lambda g: (g * y.data, g * x.data))


def double(x):
    return record(2 * x.data, [x], lambda g: (2 * g,))


def leaf(*values):
    return Tensor(np.array(values), requires_grad=True)


# --- the tape to look at --------------------------------------------------------------------------


def test_a_diamond_is_drawn_with_both_its_sides():
    x = leaf(3.0)
    left, right = double(x), multiply(x, x)
    nodes, edges = graph(add(left, right))
    assert nodes == [("leaf", (1,)), ("double", (1,)), ("multiply", (1,)), ("add", (1,))]
    assert sorted(edges) == [(0, 1), (0, 2), (0, 2), (1, 3), (2, 3)]
    assert all(parent < result for parent, result in edges)


def test_the_drawn_tape_of_a_leaf_of_a_constant_and_of_nothing_recorded():
    assert graph(leaf(1.0)) == ([("leaf", (1,))], [])
    assert graph(leaf(1.0) * 2)[0] == [("leaf", (1,)), ("leaf", ()), ("mul", (1,))]
    with no_grad():
        assert graph(leaf(1.0) + 1.0) == ([("leaf", (1,))], [])


# --- gradients ------------------------------------------------------------------------------------


def test_one_tensor_used_twice_by_one_operation():
    x = leaf(3.0, -2.0)
    multiply(x, x).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [6.0, -40.0])


def test_an_operation_that_adds_for_itself():
    """It is given what its first parent has received so far, and what it returns stands for all of it."""
    seen = []

    def backward(g, pending):
        seen.append(None if pending is None else pending.copy())
        return (3 * g if pending is None else 3 * g + pending,)

    def triple(x):
        return record(3 * x.data, [x], backward, adds=True)

    x = leaf(2.0, 5.0)
    fork = double(x)
    first, second = triple(fork), triple(fork)  # walked from the newest: double, second, first
    add(add(first, second), double(fork)).backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.grad, [16.0, 160.0])
    assert [s.tolist() for s in seen] == [[2.0, 20.0], [5.0, 50.0]]
    seen.clear()
    triple(x).backward(np.array([1.0, 1.0]))  # nothing is pending for a leaf: it has added what it received
    assert seen == [None] and x.grad.tolist() == [19.0, 163.0]


def test_diamond():
    """y = (2x)(x + x) = 4 x^2, so dy/dx = 8x: both arms must be in before the node at the fork is visited."""
    x = leaf(3.0)
    shared = double(x)
    multiply(shared, add(x, x)).backward()
    assert x.grad == 24.0


def test_arms_of_very_different_length():
    """The short arm reaches x long before the long one; a walk by depth from the root would go wrong."""
    x = leaf(1.5)
    middle = double(x)
    long = middle
    for _ in range(10):
        long = double(long)
    add(middle, long).backward()
    assert x.grad == 2 + 2 * 2**10


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_against_the_complex_step(seed):
    """Any graph of +, x and 2x over three leaves; oracle: f(x + ih).imag / h, exact to rounding (no tape)."""

    def build(leaves, plus, times, twice):
        rng = np.random.default_rng(seed)
        values = list(leaves)
        for _ in range(25):
            i, j, kind = (*rng.integers(0, len(values), 2), rng.integers(0, 3))
            new = (plus, times)[kind](values[i], values[j]) if kind < 2 else twice(values[i])
            values.append(new)
            if rng.random() < 0.3 and len(values) > 5:
                values.pop(rng.integers(0, len(values) - 1))
        total = values[0]
        for value in values[1:]:
            total = plus(total, value)
        return total

    start = np.random.default_rng(100 + seed).uniform(-0.6, 0.6, (3, 4))
    cotangent = np.random.default_rng(200 + seed).standard_normal(4)
    leaves = [Tensor(row, requires_grad=True) for row in start]
    build(leaves, add, multiply, double).backward(cotangent)
    for k in range(3):
        moved = [row + (1e-30j if k == i else 0) for i, row in enumerate(start)]
        expected = build(moved, lambda a, b: a + b, lambda a, b: a * b, lambda a: 2 * a).imag / 1e-30 * cotangent
        got = np.zeros(4) if leaves[k].grad is None else leaves[k].grad
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_a_chain_of_100_000_operations_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = record(y.data + 1, [y], lambda g: (g,))
    y.backward()
    assert y.data == 100_001 and x.grad == 1.0


def test_a_long_chain_that_is_dropped_unused_does_no_harm():
    """Its 100,000 tensors free one another; nested deallocation of that depth must not overflow the C stack."""
    x = y = leaf(1.0)
    for _ in range(100_000):
        y = double(add(y, y))
        y.data = np.ones(1)
    before = sys.getrefcount(x)
    del y
    gc.collect()
    assert sys.getrefcount(x) < before  # the whole chain is gone, down to what held its first tensor


def test_gradients_of_several_backward_calls_add_up():
    x = leaf(1.0, 2.0)
    for _ in range(3):
        double(x).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [6.0, 6.0])


def test_a_leaf_is_its_own_gradient():
    x = leaf(2.0)
    x.backward()
    assert x.grad == 1.0


def test_parents_that_need_no_gradient_get_none():
    x, constant = leaf(2.0), Tensor(np.array([5.0]))
    y = multiply(x, constant)
    y.backward()
    assert x.grad == 5.0 and constant.grad is None
    assert not multiply(constant, constant).requires_grad


def test_a_backward_may_return_none():
    x, y = leaf(1.0), leaf(2.0)
    record(x.data + y.data, [x, y], lambda g: (g, None)).backward()
    assert x.grad == 1.0 and y.grad is None


def test_a_branch_that_gets_no_gradient_at_all():
    """None stops the flow, and what lies behind is neither called nor left holding memory."""
    x, called = leaf(1.0), []
    behind = record(x.data * 3, [x], lambda g: called.append(1) or (g,))
    stop = record(behind.data, [behind], lambda g: (None,))
    add(stop, x).backward()
    assert x.grad == 1.0 and not called


# --- the operators --------------------------------------------------------------------------------


def test_the_operators_by_hand():
    """What the demo prints: (x @ w) * y and its gradients."""
    x, w, y = leaf([1.0, 2.0]), leaf([1.0, 0.0], [3.0, -1.0]), leaf([2.0, 5.0])
    z = (x @ w) * y
    assert z.data.tolist() == [[14.0, -10.0]]
    z.backward(np.ones((1, 2)))
    assert y.grad.tolist() == [[7.0, -2.0]] and x.grad.tolist() == [[2.0, 1.0]]
    assert w.grad.tolist() == [[2.0, 5.0], [4.0, 10.0]]


def test_numbers_and_arrays_are_constants():
    """On either side, and float32 stays float32: numpy must not take the tensor for an array of objects."""
    for dtype in (np.float32, np.float64):
        x = Tensor(np.array([1.0, -2.0], dtype), requires_grad=True)
        for function, value, slope in (
            (lambda x: 3 * x, [3.0, -6.0], 3),
            (lambda x: x * 3, [3.0, -6.0], 3),
            (lambda x: x + 1.5, [2.5, -0.5], 1),
            (lambda x: 1.5 + x, [2.5, -0.5], 1),
            (lambda x: x - 1.5, [-0.5, -3.5], 1),
            (lambda x: -x, [-1.0, 2.0], -1),
            (lambda x: np.array([4.0, 5.0]) * x, [4.0, -10.0], [4, 5]),
            (lambda x: np.float64(2) * x, [2.0, -4.0], 2),
            (lambda x: x - x, [0.0, 0.0], 0),
        ):
            x.grad, y = None, function(x)
            assert isinstance(y, Tensor) and y.data.dtype == dtype and y.data.tolist() == value
            y.backward(np.ones(2))
            assert x.grad.dtype == dtype and (x.grad == slope).all()


def test_what_was_broadcast_collects_all_its_uses():
    rows, row, column = leaf([1.0, 2.0], [3.0, 4.0]), leaf(10.0, 20.0), leaf([1.0], [2.0])
    number = Tensor(np.array(5.0), requires_grad=True)
    ((rows + row) * column + number).backward(np.array([[1.0, 10.0], [100.0, 1000.0]]))
    assert rows.grad.tolist() == [[1.0, 10.0], [200.0, 2000.0]]
    assert row.grad.tolist() == [201.0, 2010.0]
    assert column.grad.tolist() == [[11 + 220.0], [100 * 13 + 1000 * 24.0]]
    assert number.grad == 1111.0 and number.grad.shape == ()


# --- who owns which array -------------------------------------------------------------------------


def test_an_array_given_to_two_parents_is_never_added_into():
    """add hands the same g to x and y; x then collects more, and y must not see it."""
    x, y = leaf(1.0, 1.0), leaf(1.0, 1.0)
    total = add(x, y)
    for _ in range(4):
        total = add(total, x)
    cotangent = np.array([1.0, 2.0])
    total.backward(cotangent)
    np.testing.assert_array_equal(x.grad, [5.0, 10.0])
    np.testing.assert_array_equal(y.grad, [1.0, 2.0])
    np.testing.assert_array_equal(cotangent, [1.0, 2.0])  # nor may the caller's array change


def test_gradients_of_two_leaves_never_share_memory():
    x, y = leaf(1.0), leaf(1.0)
    cotangent = np.ones(1)
    add(x, y).backward(cotangent)
    assert not np.shares_memory(x.grad, y.grad) and not np.shares_memory(x.grad, cotangent)
    x.grad += 1
    assert y.grad == 1.0


def test_a_shared_gradient_in_the_middle_of_the_tape():
    """Several contributions to one result, the first of which it shares with another."""
    x = leaf(1.0)
    a, b = double(x), double(x)
    s = add(a, b)  # g goes to a and b, the same array
    t = add(s, a)  # and a collects a second time
    u = add(t, a)  # and a third time
    multiply(u, leaf(1.0)).backward()
    assert x.grad == 2 * 3 + 2


def test_read_only_gradients_are_fine():
    x = leaf(1.0, 2.0, 3.0)
    total = record(x.data.sum(), [x], lambda g: (np.broadcast_to(g, 3),))
    again = record(x.data.sum(), [x], lambda g: (np.broadcast_to(g, 3),))
    add(total, again).backward()
    np.testing.assert_array_equal(x.grad, [2.0, 2.0, 2.0])


def test_a_preset_gradient_buffer_is_filled_in_place():
    buffer = np.zeros(4)
    x = leaf(1.0, 2.0)
    x.grad = buffer[1:3]
    double(x).backward(np.ones(2))
    double(x).backward(np.ones(2))
    np.testing.assert_array_equal(buffer, [0, 4, 4, 0])


# --- memory ---------------------------------------------------------------------------------------


class Watched(np.ndarray):
    """An array that a weak reference can point to."""


def watched():
    array = Watched(3)  # it owns its memory, so every view of it keeps it alive
    array[:] = 0
    return array


def chain_with_saved_arrays(x, n):
    """n operations that each save an array; weak references to these, the oldest first."""
    saved, y = [], x

    def operation(y):
        array = watched()
        saved.append(weakref.ref(array))

        def backward(g):
            alive.append(sum(reference() is not None for reference in saved))
            return (g + array.sum(),)

        return record(y.data + 1, [y], backward)

    alive = []
    for _ in range(n):
        y = operation(y)
    return y, saved, alive


def test_saved_arrays_die_one_by_one_while_backward_proceeds():
    """Without the help of the cycle collector, so the peak of a step is its forward pass."""
    gc.disable()
    try:
        x = leaf(1.0)
        y, saved, alive = chain_with_saved_arrays(x, 10)
        assert all(reference() is not None for reference in saved)
        y.backward()
        assert alive == list(range(10, 0, -1))
        assert all(reference() is None for reference in saved)
    finally:
        gc.enable()


def test_the_intermediate_tensors_die_too():
    """Even while the result is still held, say for the progress bar."""
    gc.disable()
    try:
        x = leaf(1.0)
        y = x
        references = []
        for _ in range(5):
            data = watched()
            references.append(weakref.ref(data))
            y = record(data, [y], lambda g: (g.sum(keepdims=True) if g.size != 3 else g[:1],))
            del data
            y = record(y.data[:1] + 0, [y], lambda g: (np.repeat(g, 3),))
        assert all(reference() is not None for reference in references)
        y.backward()
        assert all(reference() is None for reference in references)
    finally:
        gc.enable()


def test_a_tape_that_is_never_walked_is_freed_with_its_end():
    gc.disable()
    try:
        y, saved, _ = chain_with_saved_arrays(leaf(1.0), 5)
        del y
        assert all(reference() is None for reference in saved)
    finally:
        gc.enable()


def test_branches_without_a_gradient_are_freed_as_well():
    """A branch whose cotangent never comes is consumed like the others: its saved arrays must not linger."""
    x = leaf(1.0)
    y, saved, alive = chain_with_saved_arrays(x, 3)
    stop = record(y.data, [y], lambda g: (None,))
    add(stop, x).backward()
    assert alive == [] and x.grad == 1.0
    del y, stop
    assert all(reference() is None for reference in saved)


# --- misuse ---------------------------------------------------------------------------------------


def test_a_second_backward_is_refused():
    y = double(leaf(1.0))
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_two_losses_over_one_tape_are_refused():
    """Silence would be a wrong gradient: the shared part has dropped what it knew."""
    x = leaf(1.0)
    shared = double(x)
    first, second = double(shared), double(shared)
    first.backward()
    with pytest.raises(RuntimeError, match="second time"):
        second.backward()


def test_backward_of_a_tensor_that_needs_no_gradient_is_refused():
    """Silence would leave every gradient as it was."""
    with no_grad():
        unrecorded = double(leaf(1.0))
    for y in (unrecorded, double(Tensor(np.ones(1))), Tensor(np.ones(1))):
        with pytest.raises(RuntimeError, match="needs no gradient"):
            y.backward()


def test_a_vector_needs_a_cotangent_of_its_own_shape():
    y = double(leaf(1.0, 2.0))
    with pytest.raises(ValueError, match="needs a cotangent"):
        y.backward()
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        y.backward(np.ones(3))
    y.backward([1, 2])  # anything that converts


def test_a_gradient_of_the_wrong_shape_is_caught_where_it_is_made():
    x = leaf(1.0, 2.0)
    with pytest.raises(AssertionError):
        record(x.data, [x], lambda g: (g[:1],)).backward(np.ones(2))


def test_one_gradient_per_parent():
    x, y = leaf(1.0), leaf(1.0)
    with pytest.raises(ValueError):
        record(x.data, [x, y], lambda g: (g,)).backward()


def test_the_cotangent_takes_the_type_of_the_tensor():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    double(x).backward(np.ones(2))
    assert x.grad.dtype == np.float32


# --- no_grad --------------------------------------------------------------------------------------


def test_no_grad_records_nothing_and_ends_even_after_an_error():
    x = leaf(1.0)
    with no_grad():
        assert not is_recording()
        y = double(x)
        with no_grad():
            pass
        assert not is_recording()  # the inner block must not switch it on
    assert is_recording() and not y.requires_grad and y._parents == () and y._backward is None
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_recording() and double(x).requires_grad


def test_each_thread_has_a_no_grad_of_its_own():
    """Blocks that overlap, entered A B and left A B: one switch for all would be put back to what B found, off."""
    a_is_inside, b_is_inside, a_has_left = threading.Event(), threading.Event(), threading.Event()
    seen = {}

    def a():
        with no_grad():
            a_is_inside.set()
            b_is_inside.wait(60)
            seen["a inside"] = is_recording()
        seen["a after"] = is_recording()
        a_has_left.set()

    def b():
        a_is_inside.wait(60)
        seen["b at first"] = is_recording()
        with no_grad():
            b_is_inside.set()
            a_has_left.wait(60)
            seen["b inside"] = is_recording()

    threads = [threading.Thread(target=a), threading.Thread(target=b)]
    with no_grad():  # nor does a new thread begin in its maker's block
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert seen == {"a inside": False, "a after": True, "b at first": True, "b inside": False}
    assert is_recording() and double(leaf(1.0)).requires_grad


def test_no_grad_keeps_nothing_alive():
    gc.disable()
    try:
        x = leaf(1.0)
        with no_grad():
            y, saved, _ = chain_with_saved_arrays(x, 3)
        assert all(reference() is None for reference in saved) and y.data == 4.0
    finally:
        gc.enable()


def test_small_things():
    assert repr(Tensor(np.zeros((2, 3), np.float32))) == "Tensor(2, 3), float32"
    assert repr(leaf(1.0)) == "Tensor(1,), float64, requires_grad"
    assert Tensor([[1, 2]]).shape == (1, 2)
    assert keep_freed_memory() in (True, False)
    assert is_recording()
