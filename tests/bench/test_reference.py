"""mini_pkd against PyTorch: the loss and every gradient, RNN-T alone and with a teacher, both forms.

The reference is another language of the same model: padded and dense (stock), or in blocks and chunks (tuned),
with autograd and library kernels.  What both sides get right by the same mistake would have to be the same
mistake in different code.  Errors are relative to a gradient's largest entry.  In float64 both sides differ by
rounding alone (1.2e-14 was the most seen), in float32 by 5e-6; the tolerances leave room for other machines.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[bench]'")

from mini_pkd.attention import causal_attention  # noqa: E402
from mini_pkd.conformer import ConformerConfig  # noqa: E402
from mini_pkd.lattice_kl import distillation_loss  # noqa: E402
from mini_pkd.ragged import Batch  # noqa: E402
from mini_pkd.rnnt_loss import readable, rnnt_loss  # noqa: E402
from mini_pkd.tensor import Tensor, no_grad  # noqa: E402
from mini_pkd.transducer import Transducer, TransducerConfig  # noqa: E402

from . import torch_reference as reference  # noqa: E402

TOLERANCE = {"float32": 3e-5, "float64": 1e-12}
LENGTHS = {  # feature rows, labels; window and kernel are 6 and 4
    "ragged": ([61, 17, 40, 33], [5, 0, 9, 2]),
    "short": ([1, 9, 2, 8, 3], [1, 2, 0, 0, 4]),
    "no labels": ([20, 31], [0, 0]),
    "one": ([45], [7]),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(seed, dtype, lengths, label_lengths, symbols=19, width=12, joint=10, layers=2):
    """A model whose every parameter is random (a zero bias would hide its own gradient's errors), and a batch."""
    rng = np.random.default_rng(seed)
    encoder = ConformerConfig(features=7, blocks=4, width=width, heads=3, window=6, kernel=4, expansion=2)
    model = Transducer(TransducerConfig(encoder, symbols, joint, layers, 9), rng, dtype)
    for p in model.named_parameters().values():
        p.data += 0.1 * rng.standard_normal(p.shape).astype(dtype)
    labels = rng.integers(1, symbols, sum(label_lengths))
    features = rng.standard_normal((sum(lengths), 7)).astype(dtype)
    ids = [str(b) for b in range(len(lengths))]
    return model, Batch(ids, features, np.array(lengths), labels.astype(np.int64), np.array(label_lengths))


def arrays(model):
    return {name: p.data for name, p in model.named_parameters().items()}


def ours(model, teacher, batch, alpha):
    student, lengths = model.lattice_inputs(batch, batch.features)
    if teacher is None:
        loss, rnnt = rnnt_loss(*student, batch.labels, lengths, batch.label_lengths)
        kl = np.zeros_like(rnnt)
    else:
        with no_grad():
            taught = tuple(t.data for t in teacher.lattice_inputs(batch, batch.features)[0])
        loss, rnnt, kl = distillation_loss(student, taught, batch.labels, lengths, batch.label_lengths, alpha)
    loss.backward()
    return float(loss.data), rnnt, kl, {name: p.grad for name, p in model.named_parameters().items()}


def copy_of(model, dtype="float32"):
    network = reference.Transducer(model.config_dict()).to(getattr(torch, dtype))
    return reference.load_weights(network, arrays(model))


def theirs(form, model, teacher, batch, alpha, dtype, **options):
    networks = [network and copy_of(network, dtype) for network in (model, teacher)]
    trainer = reference.Trainer(form, *networks, alpha=alpha, rate=0.0, **options)
    tensors = reference.Batch(batch.features, batch.lengths, batch.labels, batch.label_lengths)
    loss, rnnt, kl = trainer.loss(tensors)
    loss.backward()
    found = reference.gradients(networks[0], arrays(model))
    return float(loss.detach()), rnnt.detach().numpy(), kl.detach().numpy(), found


def largest_error(found, expected):
    """max |difference| / max |expected|, over all parameters, and whose it is."""
    return max(
        (float(np.abs(found[name] - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-30)), name)
        for name in expected
    )


@pytest.mark.parametrize("form", ["stock", "tuned"])
@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("taught", [False, True], ids=["rnnt", "rnnt+kl"])
def test_loss_and_every_gradient(form, shape, dtype, taught):
    for seed in range(2):
        model, batch = make(seed, dtype, *LENGTHS[shape])
        teacher = make(seed + 100, dtype, *LENGTHS[shape], width=15, joint=13, layers=1)[0] if taught else None
        loss, rnnt, kl, expected = ours(model, teacher, batch, 0.3)
        their_loss, their_rnnt, their_kl, found = theirs(form, model, teacher, batch, 0.3, dtype)
        tolerance = TOLERANCE[dtype]
        assert their_loss == pytest.approx(loss, rel=tolerance)
        np.testing.assert_allclose(their_rnnt, rnnt, rtol=tolerance)
        np.testing.assert_allclose(their_kl, kl, rtol=tolerance, atol=tolerance)
        assert set(found) == set(expected)
        error, name = largest_error(found, expected)
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("options", [{"chunk_rows": 7}, {"chunk_rows": 7, "keep_bytes": 0}, {"keep_bytes": 0}])
def test_tuned_chunks_and_recomputation_change_nothing(options):
    model, batch = make(3, "float64", *LENGTHS["ragged"])
    teacher = make(103, "float64", *LENGTHS["ragged"])[0]
    expected = ours(model, teacher, batch, 0.3)
    found = theirs("tuned", model, teacher, batch, 0.3, "float64", **options)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    assert largest_error(found[3], expected[3])[0] < 1e-12


def test_long_windows_over_many_blocks():
    """Windows of 70 rows take blocks of 35 queries; utterances end in the middle of blocks."""
    rng = np.random.default_rng(0)
    lengths, heads, D = [201, 3, 90, 128], 2, 8
    for window in (70, 64, 1, 3):
        rows = reference.Rows(lengths, window, 5)
        qkv, positions, g = (rng.standard_normal(s) for s in ((sum(lengths), 3 * D), (window, D), (sum(lengths), D)))
        tensors = [Tensor(qkv.T.copy(), requires_grad=True), Tensor(positions, requires_grad=True)]
        out = causal_attention(*tensors, lengths, heads)  # (D, N): rows of the batch lie along the last axis there
        out.backward(g.T)
        inputs = [torch.from_numpy(x).requires_grad_() for x in (qkv, positions)]
        found = reference.BandedAttention.apply(*inputs, rows, heads)
        found.backward(torch.from_numpy(g))
        np.testing.assert_allclose(found.detach().numpy(), out.data.T, atol=1e-12)
        for theirs_, ours_ in zip(inputs, (tensors[0].grad.T, tensors[1].grad), strict=True):
            np.testing.assert_allclose(theirs_.grad.numpy(), ours_, atol=1e-11)


def test_forward_backward_against_the_readable_recursion():
    rng = np.random.default_rng(1)
    lengths, label_lengths = [5, 1, 7], [3, 2, 0]
    blank, label = (-3 * rng.random((3, 7, 4)) for _ in range(2))
    losses, d_blank, d_label = reference.forward_backward(
        torch.from_numpy(blank), torch.from_numpy(label), lengths, label_lengths
    )
    for b, (T, U) in enumerate(zip(lengths, label_lengths, strict=True)):
        log_probs = np.zeros((T, U + 1, U + 1))
        log_probs[:, :, 0] = blank[b, :T, : U + 1]
        for u in range(U):
            log_probs[:, u, u + 1] = label[b, :T, u]
        loss, gradient = readable(log_probs, np.arange(1, U + 1))
        assert float(losses[b]) == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(d_blank[b, :T, : U + 1], gradient[:, :, 0], atol=1e-12)
        for u in range(U):
            np.testing.assert_allclose(d_label[b, :T, u], gradient[:, u, u + 1], atol=1e-12)
    outside = np.ones((3, 7, 4), dtype=bool)
    for b, (T, U) in enumerate(zip(lengths, label_lengths, strict=True)):
        outside[b, :T, : U + 1] = False
    assert not d_blank.numpy()[outside].any() and not d_label.numpy()[outside].any()


@pytest.mark.parametrize("form", ["stock", "tuned"])
def test_a_step_with_dropout_moves_every_parameter(form):
    model, batch = make(5, "float32", *LENGTHS["ragged"])
    network = copy_of(model)
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    trainer = reference.Trainer(form, network, network, rate=0.3)
    tensors = reference.Batch(batch.features, batch.lengths, batch.labels, batch.label_lengths)
    losses = [trainer.step(tensors) for _ in range(3)]
    assert np.isfinite(losses).all() and len(set(losses)) == 3
    still = [name for name, p in network.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert not still
