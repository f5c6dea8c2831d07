"""training.npz: what is no state of this training is refused, whatever somebody did to it."""

import dataclasses
import errno
import json
import random

import numpy as np
import pytest
from handful import SETTINGS, SIZE, StopAfter, new_model
from test_model_file import mutated

from mini_pkd import UserError, checkpoint, train
from mini_pkd.optimizer import Adam, learning_rate
from mini_pkd.stop_signal import Interrupted
from mini_pkd.training_state import TrainingState, state_files


def new_state(bpe, folder, size=SIZE):
    return TrainingState(Adam(new_model(bpe, size=size), SETTINGS.clip), folder, "S1", SETTINGS.peak_rate)


def test_a_checkpoint_of_another_size_is_refused(handful, tmp_path):
    part, bpe, _ = handful
    with pytest.raises(Interrupted):
        train.train(new_model(bpe), part, part, bpe, SETTINGS, tmp_path, 0, "S1", None, StopAfter(0), progress=False)
    other = new_model(bpe, size=dataclasses.replace(SIZE, width=32))
    with pytest.raises(UserError, match="another size"):
        train.train(other, part, part, bpe, SETTINGS, tmp_path, 0, "S1", progress=False)


def test_a_state_of_version_0_1_is_continued_to_the_same_bits(handful, tmp_path):
    """It knows no peak rates, neither in its meta nor as a column of its log, and no smooth loss."""
    part, bpe, _ = handful

    def run(folder, stop=None):
        model = new_model(bpe)
        result = train.train(model, part, part, bpe, SETTINGS, folder, 0, "S1", None, stop, progress=False)
        log = [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]  # less the seconds
        return np.concatenate([p.data.ravel() for p in model.named_parameters().values()]), result["peak_rates"], log

    undisturbed = run(tmp_path / "a")
    steps_of_an_epoch = len(part.batches(SETTINGS.batch_frames, SETTINGS.batch_utterances))
    with pytest.raises(Interrupted):
        run(tmp_path / "b", StopAfter(steps_of_an_epoch + 1))  # ... and a look before the dev set
    path = tmp_path / "b" / "training.npz"
    arrays, meta = checkpoint.load(path)
    assert (
        meta.pop("roll_backs") == 0
        and meta.pop("looked_at")
        and meta.pop("peak_rates") == undisturbed[1]
        and len(meta["rows"]) == 1
    )
    meta["rows"] = [row[:8] + row[9:] for row in meta["rows"]]
    assert meta.keys() - {"smooth_loss"} == {
        "step", "epoch", "done_in_epoch", "skipped", "bad_in_a_row", "sums", "rows", "seconds", "best", "adam_steps"
    }  # fmt: skip
    del meta["smooth_loss"]
    checkpoint.save(path, arrays, meta)
    resumed = run(tmp_path / "b")
    assert np.array_equal(resumed[0], undisturbed[0]) and resumed[1:] == undisturbed[1:]


def test_one_that_had_diverged_before_there_were_roll_backs_rolls_back(handful, tmp_path, capfd):
    _, bpe, _ = handful
    state = new_state(bpe, tmp_path)
    state.bad_in_a_row = 5
    state.save()
    arrays, meta = checkpoint.load(state.path)
    del meta["roll_backs"]
    checkpoint.save(state.path, arrays, meta)
    again = new_state(bpe, tmp_path)
    again.restore()
    assert again.peak_rates == [[1, SETTINGS.peak_rate], [1, SETTINGS.peak_rate / 2]] and again.bad_in_a_row == 0
    assert "half the rate" in capfd.readouterr().err


# --- disks ----------------------------------------------------------------------------------------


def runner(handful, tmp_path):
    part, bpe, _ = handful

    def run(folder, stop=None, **changes):
        model, settings = new_model(bpe), dataclasses.replace(SETTINGS, **changes)
        result = train.train(model, part, part, bpe, settings, tmp_path / folder, 0, "S1", None, stop, progress=False)
        log = [line.rsplit(",", 1)[0] for line in (tmp_path / folder / "log.csv").read_text().splitlines()]
        return np.concatenate([p.data.ravel() for p in model.named_parameters().values()]).tolist(), log, result

    return run


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
def test_a_damaged_state_falls_back_to_the_one_before(handful, tmp_path, capfd, damage):
    """unlink: killed between the two renames of a save.  The steps in between are done again, to the same bits."""
    run = runner(handful, tmp_path)
    undisturbed = run("a")
    for looks in (0, 0):
        with pytest.raises(Interrupted):
            run("b", StopAfter(looks))
    newer, older = state_files(tmp_path / "b")
    assert [checkpoint.load(path)[1]["step"] for path in (newer, older)] == [2, 1]
    damage(newer)
    resumed = run("b")
    assert resumed[:2] == undisturbed[:2]
    told = "training.npz is damaged or cut short" in capfd.readouterr().err
    assert told == (damage in (cut, flip))


def test_both_states_damaged(handful, tmp_path):
    run = runner(handful, tmp_path)
    for looks in (0, 0):
        with pytest.raises(Interrupted):
            run("b", StopAfter(looks))
    for path in state_files(tmp_path / "b"):
        cut(path)
    with pytest.raises(UserError, match=r"training\.npz is damaged or cut short"):
        run("b")


def test_a_full_disk_does_not_end_a_training(handful, tmp_path, monkeypatch, capfd):
    """It goes on, says so at each attempt, saves when there is room again, and ends in the same bits."""
    run = runner(handful, tmp_path)
    undisturbed = run("a")
    real, calls = checkpoint.write_file_atomic, []

    def full_for_a_while(path, *rest):
        calls.append(path.name)
        if len(calls) in (2, 3):  # a state after a step, and the log of the first epoch
            raise checkpoint.DiskFull(f"the disk is full: {path} could not be written; free some")
        real(path, *rest)

    monkeypatch.setattr(checkpoint, "write_file_atomic", full_for_a_while)
    assert run("b", checkpoint_minutes=1e-9)[:2] == undisturbed[:2]
    assert calls[:5] == ["training.npz", "training.npz", "log.csv", "training.npz", "training.npz"]
    err = capfd.readouterr().err
    assert err.count("mini_pkd: the disk is full: ") == err.count("S1 goes on, and is saved when there is room") == 2
    assert checkpoint.load(tmp_path / "b" / "training.npz")[1]["epoch"] == SETTINGS.epochs


def test_a_disk_that_is_full_at_a_stop_is_an_error(handful, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(checkpoint.DiskFull, match="the disk is full"):
        runner(handful, tmp_path)("a", StopAfter(0))


@pytest.mark.parametrize("seed", range(4))
def test_a_state_changed_by_hand_is_refused_or_can_be_continued(handful, tmp_path, seed):
    """100 mutations each: no exception but UserError, at once or in what the loop does with the state."""
    _, bpe, _ = handful
    size = dataclasses.replace(SIZE, width=8, heads=2, joint_width=8, lstm_width=8)
    state = new_state(bpe, tmp_path, size)
    state.adam.gradients[:] = 1.0
    state.adam.step(0.1)
    state.keep_best(4.0, 0.5)
    state.end_epoch(4.0, 0.5)
    state.end_epoch()
    arrays, meta = checkpoint.load(state.path)
    rng = random.Random(seed)
    refused = 0
    for _ in range(100):
        broken = mutated(meta, rng)
        checkpoint.save(state.path, arrays, broken)
        state = new_state(bpe, tmp_path, size)
        try:
            state.restore()
        except UserError as error:
            assert "training.npz is not the state of a training; delete it to train S1 anew." in str(error)
            refused += 1
            continue
        state.adam.gradients[:] = 1.0
        state.adam.step(learning_rate(state.step + 1, 100, 0.1, 10))
        state.sums[0] += 1.0
        state.keep_best(3.0, 0.25)
        state.end_epoch(3.0, 0.25)
        assert np.isfinite(state.adam.values).all() and json.dumps(state.finish())
    assert 50 < refused < 100


@pytest.mark.parametrize("name", ["values", "m", "v", "best"])
def test_arrays_of_a_state_that_are_none_of_this_model(handful, tmp_path, name):
    _, bpe, _ = handful
    state = new_state(bpe, tmp_path)
    state.save()
    arrays, meta = checkpoint.load(state.path)
    spoiled = arrays[name].copy()
    spoiled[3] = np.nan
    broken = [arrays | {name: array} for array in (spoiled[:1], spoiled, arrays[name].astype(np.float64))]
    broken.append({key: array for key, array in arrays.items() if key != name})
    broken.append(arrays | {"v": -np.ones_like(spoiled)})  # a variance
    for spoiled_arrays in broken:
        checkpoint.save(state.path, spoiled_arrays, meta)
        with pytest.raises(UserError, match="another size|not the state of a training"):
            state.restore()
