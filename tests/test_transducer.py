"""transducer.py: the tied table, the model's pieces against each other, and the gradient of the whole model.

The last is the test that matters: encoder, prediction network, joint, RNN-T loss and distillation, one scalar, and
its derivative along random directions by central differences.
"""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from mini_pkd import rnnt_loss
from mini_pkd.conformer import ConformerConfig
from mini_pkd.lattice_kl import distillation_loss
from mini_pkd.layers import NO_DROPOUT, DropoutKeys
from mini_pkd.tensor import no_grad
from mini_pkd.transducer import Transducer, TransducerConfig, count_parameters

ENCODER = ConformerConfig(features=5, blocks=4, width=8, heads=2, window=6, kernel=4, expansion=2)
CONFIG = TransducerConfig(ENCODER, symbols=6, joint_width=7, lstm_layers=2, lstm_width=5)
TEACHER = TransducerConfig(
    ConformerConfig(features=5, blocks=3, width=6, heads=3, window=4, kernel=3, expansion=3),
    symbols=6, joint_width=4, lstm_layers=1, lstm_width=3,
)  # fmt: skip


def make(seed=0, config=CONFIG, dtype=np.float64):
    """A transducer whose every parameter is random, gains and biases included."""
    rng = np.random.default_rng(seed)
    model = Transducer(config, rng, dtype)
    for p in model.named_parameters().values():
        p.data = (p.data + 0.2 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def make_batch(seed, lengths, label_lengths):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(
        features=rng.standard_normal((sum(lengths), 5)),
        lengths=np.array(lengths),
        labels=rng.integers(1, 6, sum(label_lengths)),
        label_lengths=np.array(label_lengths),
    )


BATCH = make_batch(0, [19, 9, 1, 30], [2, 0, 1, 5])  # 3, 2, 1 and 4 lattice rows; the last has more labels than rows


# --- one tensor, used twice -----------------------------------------------------------------------------------


def test_embedding_and_output_matrix_are_one_tensor():
    model = make()
    assert model.table is model.predictor.embedding.table and model.table.shape == (6, 7)
    named = model.named_parameters()
    assert sum(p is model.table for p in named.values()) == 1
    assert len({id(p) for p in named.values()}) == len(named)
    inputs, _ = model.lattice_inputs(BATCH, BATCH.features)
    assert inputs[2] is model.table and inputs[3] is model.output_bias


def test_the_gradient_of_the_table_is_the_sum_of_both_uses():
    """Give the joint a copy of the table, so that each use collects its own gradient."""
    model = make()

    def gradients(untie):
        for p in model.named_parameters().values():
            p.grad = None
        (enc, pred, table, bias), lengths = model.lattice_inputs(BATCH, BATCH.features)
        if untie:
            table = type(table)(table.data.copy(), requires_grad=True)
        rnnt_loss.rnnt_loss(enc, pred, table, bias, BATCH.labels, lengths, BATCH.label_lengths)[0].backward()
        return model.table.grad, table.grad

    tied, _ = gradients(untie=False)
    as_embedding, as_output = gradients(untie=True)
    assert np.abs(as_embedding).max() > 1e-4 and np.abs(as_output).max() > 1e-4
    np.testing.assert_allclose(tied, as_embedding + as_output, atol=1e-15)


def test_changing_the_table_changes_both_ends():
    model = make()
    model.table.data = model.table.data.copy()
    model.table.data[3] += 1
    pred, _ = model.predictor_step(np.array([3]), model.predictor.zero_state(1))
    other, _ = make().predictor_step(np.array([3]), model.predictor.zero_state(1))
    assert np.abs(pred - other).max() > 1e-3
    row = np.ones((1, 7))
    changed = model.joint_logits(row, row) != make().joint_logits(row, row)
    assert changed[0].tolist() == [False, False, False, True, False, False]


# --- training and decoding see the same model -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_predictor_steps_equal_the_rows_of_training(dtype):
    model = make(dtype=dtype)
    tolerance = 1e-13 if dtype == np.float64 else 2e-6
    (_, pred, _, _), _ = model.lattice_inputs(BATCH, BATCH.features.astype(dtype))
    row = label = 0
    for U in BATCH.label_lengths:
        out, state = model.predictor_start(1)
        for u in range(U + 1):
            assert out.dtype == dtype and np.abs(out[0] - pred.data[row]).max() < tolerance
            row += 1
            if u < U:
                out, state = model.predictor_step(BATCH.labels[label : label + 1], state)
                label += 1
    assert row == len(pred.data) and label == len(BATCH.labels)


def test_encode_gives_the_rows_of_training():
    model = make()
    (enc, _, _, _), lengths = model.lattice_inputs(BATCH, BATCH.features)
    rows, own_lengths = model.encode(BATCH.features, BATCH.lengths)
    np.testing.assert_array_equal(rows, enc.data)
    assert lengths.tolist() == own_lengths.tolist() == [3, 2, 1, 4] and enc.shape == (10, 7)


def test_joint_logits_at_every_node_are_the_lattice_of_the_loss():
    """The loss over logits that are laid out by joint_logits equals the loss that never lays them out."""
    model = make()
    (enc, pred, table, bias), lengths = model.lattice_inputs(BATCH, BATCH.features)
    losses = rnnt_loss.rnnt_loss(enc, pred, table, bias, BATCH.labels, lengths, BATCH.label_lengths)[1]
    for b, (enc_rows, pred_rows, label_rows) in enumerate(rnnt_loss.utterances(lengths, BATCH.label_lengths)):
        e, p = enc.data[enc_rows], pred.data[pred_rows]
        T, columns = len(e), len(p)
        logits = model.joint_logits(np.repeat(e, columns, axis=0), np.tile(p, (T, 1)))
        log_probs = rnnt_loss.log_softmax(logits).reshape(T, columns, -1)
        assert abs(rnnt_loss.brute_force(log_probs, BATCH.labels[label_rows]) - losses[b]) < 1e-10


def test_joint_logits_by_hand():
    model = make()
    e, p = np.random.default_rng(0).standard_normal((2, 1, 7))
    expected = [np.dot(np.tanh(e[0] + p[0]), model.table.data[k]) + model.output_bias.data[k] for k in range(6)]
    np.testing.assert_allclose(model.joint_logits(e, p)[0], expected, rtol=1e-13)


def test_decoding_records_nothing():
    model = make()
    assert isinstance(model.encode(BATCH.features, BATCH.lengths)[0], np.ndarray)
    pred, state = model.predictor_start(4)
    assert pred.shape == (4, 7) and len(state) == 4 and all(s.shape == (4, 5) for s in state)
    with no_grad():
        inputs, _ = model.lattice_inputs(BATCH, BATCH.features)
    assert not inputs[0].requires_grad and not inputs[1].requires_grad


# --- the gradient of the whole model --------------------------------------------------------------------------


def whole_loss(student, teacher, batch, dropout_rate=0.0, **options):
    dropout = DropoutKeys(dropout_rate, np.random.default_rng(3)) if dropout_rate else NO_DROPOUT
    inputs, lengths = student.lattice_inputs(batch, batch.features, dropout)
    if teacher is None:
        return rnnt_loss.rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths)[0]
    with no_grad():
        taught, _ = teacher.lattice_inputs(batch, batch.features)
    taught = tuple(t.data for t in taught)
    return distillation_loss(inputs, taught, batch.labels, lengths, batch.label_lengths, **options)[0]


def worst_disagreement(student, loss, seed):
    """Largest |measured - claimed| / scale over a direction in each parameter alone, and one in all of them.

    The scale is the larger of the two numbers, but at least 1e-2 of the claim for all parameters together: a
    parameter that hardly matters is measured against rounding errors otherwise.
    """
    rng = np.random.default_rng(seed)
    parameters = student.named_parameters()
    for p in parameters.values():
        p.grad = None
    loss().backward()
    directions = {name: rng.standard_normal(p.shape) for name, p in parameters.items()}
    claims = {name: float((p.grad * directions[name]).sum()) for name, p in parameters.items()}
    everything = sum(claims.values())
    least = 1e-2 * np.sqrt(sum(c * c for c in claims.values()))
    before = {name: p.data for name, p in parameters.items()}

    def measured(names, step=1e-5):
        values = []
        for sign in (1, -1):
            for name in names:
                parameters[name].data = before[name] + sign * step * directions[name]
            with no_grad():
                values.append(float(loss().data))
            for name in names:
                parameters[name].data = before[name]
        return (values[0] - values[1]) / (2 * step)

    worst = 0.0
    for names, claim in [*(([name], claim) for name, claim in claims.items()), (list(claims), everything)]:
        got = measured(names)
        worst = max(worst, abs(got - claim) / max(abs(got), abs(claim), least))
    return worst


CASES = {
    "rnnt": (None, {}),
    "rnnt and full KL": (TEACHER, {"alpha": 0.5}),
    "the paper's alpha": (TEACHER, {"alpha": 0.02}),
    "collapsed KL": (TEACHER, {"alpha": 0.5, "kind": "collapsed"}),
    "convex, temperature 2": (TEACHER, {"alpha": 0.3, "mixing": "convex", "temperature": 2.0}),
    "with dropout": (TEACHER, {"alpha": 0.5, "dropout_rate": 0.2}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradient_of_the_whole_model(case):
    config, options = case
    student, teacher = make(0), make(1, config) if config else None
    for seed in range(2):
        batch = BATCH if seed == 0 else make_batch(seed, [17, 40], [3, 2])
        assert worst_disagreement(student, lambda b=batch: whole_loss(student, teacher, b, **options), seed) < 1e-6


def test_this_check_sees_an_error_of_a_thousandth_in_one_parameter(monkeypatch):
    """The gain of one layer norm in the middle: its gradient 0.1 % too big, all else right."""
    student, teacher = make(0), make(1, TEACHER)
    gain = student.encoder.blocks[1].norm.gain

    def loss():
        out = whole_loss(student, teacher, BATCH, alpha=0.5)
        backward = out.backward

        class Spoiled:
            data = out.data

            @staticmethod
            def backward():
                backward()
                gain.grad = gain.grad * 1.001

        return Spoiled

    assert worst_disagreement(student, loss, 0) > 1e-5


def test_teacher_equal_to_student_changes_nothing():
    """KL(P || P) is zero and so is its gradient: the same gradient as without a teacher."""
    student, twin = make(0), make(0)
    gradients = []
    for teacher in (None, twin):
        for p in student.named_parameters().values():
            p.grad = None
        whole_loss(student, teacher, BATCH, **({"alpha": 1.0} if teacher else {})).backward()
        gradients.append({name: p.grad for name, p in student.named_parameters().items()})
    for name in gradients[0]:
        np.testing.assert_allclose(gradients[1][name], gradients[0][name], atol=1e-12, err_msg=name)


def test_the_batch_is_the_mean_of_its_utterances():
    student, teacher = make(0), make(1, TEACHER)
    whole = float(whole_loss(student, teacher, BATCH).data)
    one_by_one, frame, label = [], 0, 0
    for T, U in zip(BATCH.lengths, BATCH.label_lengths, strict=True):
        alone = SimpleNamespace(
            features=BATCH.features[frame : frame + T], lengths=np.array([T]),
            labels=BATCH.labels[label : label + U], label_lengths=np.array([U]),
        )  # fmt: skip
        one_by_one.append(float(whole_loss(student, teacher, alone).data))
        frame, label = frame + T, label + U
    assert abs(whole - np.mean(one_by_one)) < 1e-11


def test_parameters_by_part():
    model = make()
    parts = model.parameters_by_part()
    assert list(parts) == ["encoder", "table", "predictor", "encoder_to_joint", "predictor_to_joint", "output_bias"]
    assert parts["table"] == 6 * 7 and parts["encoder_to_joint"] == 8 * 7 + 7
    assert parts["predictor"] + parts["table"] == model.predictor.num_parameters()
    assert sum(parts.values()) == model.num_parameters() == count_parameters(CONFIG)


# --- configuration --------------------------------------------------------------------------------------------


def test_configuration_survives_a_dictionary():
    assert TransducerConfig.from_dict(asdict(CONFIG)) == CONFIG
    assert TransducerConfig.from_dict(make().config_dict()) == CONFIG


def test_layers_are_counted_without_counting_to_their_number():
    """A file may declare two thousand million of them."""
    some, more = (count_parameters(replace(CONFIG, lstm_layers=n)) for n in (2, 3))
    assert count_parameters(replace(CONFIG, lstm_layers=2**31)) == some + (2**31 - 2) * (more - some)


def test_the_default_is_the_papers_teacher():
    config = TransducerConfig()
    assert (config.encoder.blocks, config.encoder.width, config.encoder.heads) == (16, 512, 4)
    assert (config.lstm_layers, config.lstm_width, config.symbols, config.joint_width) == (2, 1024, 10026, 1024)
