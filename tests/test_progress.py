"""progress.py: a bar in operations, whatever the batches are, and a log of steps."""

import csv
import dataclasses
import mmap

import numpy as np
import pytest
from handful import SETTINGS, StopAfter, new_model

from mini_pkd import memory, progress, train
from mini_pkd.memory import anonymous_memory
from mini_pkd.optimizer import learning_rate
from mini_pkd.plan import Plan
from mini_pkd.stop_signal import Interrupted


class Bar:
    """tqdm's arguments, and where the bar was after each step."""

    def __init__(self, **given):
        self.given, self.at = given, [given["initial"]]
        self.disable = given["disable"]
        bars.append(self)

    def update(self, n):
        self.at.append(self.at[-1] + n)

    def set_postfix(self, **what):
        self.shown = what

    def close(self):
        pass


bars = []


@pytest.fixture
def run(handful, tmp_path, monkeypatch):
    part, bpe, _ = handful
    monkeypatch.setattr(progress, "tqdm", Bar)

    def run(settings, stop=None, folder="run"):
        bars.clear()
        train.train(new_model(bpe), part, part, bpe, settings, tmp_path / folder, 3, "S1", None, stop)
        return list(csv.DictReader((tmp_path / folder / "steps.csv").open()))

    return run


def test_the_bar_knows_the_work_that_is_left(run, handful, monkeypatch):
    """A curriculum's first epoch has short utterances; and a training that goes on begins where it was."""
    part, bpe, _ = handful
    monkeypatch.setattr(progress, "LOG_MINUTES", 0)
    settings = dataclasses.replace(SETTINGS, batch_utterances=1, curriculum_epochs=1)
    run(settings)
    (bar,) = bars
    plan = Plan(part, settings, 3, new_model(bpe))
    assert bar.given["initial"] == 0 and bar.given["total"] == plan.work[-1] and bar.given["desc"] == "S1"
    assert len(bar.at) == 1 + plan.updates and bar.at[-1] == pytest.approx(bar.given["total"], rel=1e-12)
    assert bar.at[3] == pytest.approx(plan.work[1], rel=1e-12)
    assert bar.at[3] / bar.at[-1] < 0.9 * 3 / plan.updates  # of the steps it is a fifth
    assert bar.shown["epoch"] == 3
    with pytest.raises(Interrupted):
        run(settings, StopAfter(3 + 1 + 2), "stopped")  # a look at each step, and one at the dev set: two of epoch 2
    assert len(bars[0].at) == 1 + 6
    stopped = bars[0].at[-1]
    run(settings, None, "stopped")
    assert bars[0].given["initial"] == pytest.approx(stopped, rel=1e-12)
    assert bars[0].at[-1] == pytest.approx(plan.work[-1], rel=1e-12)


def test_a_line_every_few_minutes(run, handful, monkeypatch, tmp_path):
    part, _, _ = handful
    monkeypatch.setattr(progress, "LOG_MINUTES", 0)
    lines = run(SETTINGS)
    steps = SETTINGS.epochs * 2
    assert [int(line["step"]) for line in lines] == list(range(1, steps + 1))
    assert [int(line["epoch"]) for line in lines] == [1, 1, 2, 2, 3, 3]
    log = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    for epoch, row in enumerate(log):
        for column in ("loss", "gradient_norm"):
            mean = np.mean([float(line[column]) for line in lines[2 * epoch : 2 * epoch + 2]])
            assert mean == pytest.approx(float(row[column]), abs=2e-4)
    rates = [learning_rate(s, steps, SETTINGS.peak_rate, steps // 5) for s in range(1, steps + 1)]
    np.testing.assert_allclose([float(line["rate"]) for line in lines], rates, rtol=1e-3)
    assert all(int(line["frames_per_second"]) > 0 for line in lines)
    with pytest.raises(FileNotFoundError):
        monkeypatch.setattr(progress, "LOG_MINUTES", 1000)
        run(SETTINGS, folder="quick")


def test_a_warm_up_of_more_than_a_fifth_is_cut_and_said(run, monkeypatch, capsys):
    """... or training would end before its peak.  One that is stopped and goes on has the same rates."""
    monkeypatch.setattr(progress, "LOG_MINUTES", 0)
    settings = dataclasses.replace(SETTINGS, epochs=10, warmup_steps=1000)
    rates = [float(line["rate"]) for line in run(settings)]
    said = "mini_pkd: S1: warmup_steps=1000 is more than a fifth of its 20 updates, so the learning rate grows over "
    assert capsys.readouterr().err == said + "the first 4 of them.\n"
    assert np.argmax(rates) == 3 and rates[3] == SETTINGS.peak_rate and rates[0] == SETTINGS.peak_rate / 4
    assert rates[-1] == 0
    with pytest.raises(Interrupted):
        run(settings, StopAfter(3), "stopped")
    assert [float(line["rate"]) for line in run(settings, None, "stopped")] == rates
    capsys.readouterr()
    fits = dataclasses.replace(settings, warmup_steps=4)
    assert [float(line["rate"]) for line in run(fits, None, "fits")] == rates and capsys.readouterr().err == ""


def test_means_are_over_the_steps_since_the_last_line(handful, tmp_path, monkeypatch):
    part, bpe, _ = handful

    class State:
        name, epoch, done_in_epoch, step, smooth_loss, seconds, saved_at = "S1", 0, 0, 3, 5.0, 0.0, 0.0
        adam = type("", (), {"steps": 2})

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    plan = Plan(part, SETTINGS, 0, new_model(bpe))
    with progress.Progress(plan, State, tmp_path, shown=False) as shown:
        for seconds, means in ((60, (4.0, 4.0, 0.0, 1.0)), (60, None), (80, (2.0, 2.0, 0.0, 2.0))):
            now[0] += seconds
            shown.step([0, 1], means, 0.5)
    (line,) = csv.DictReader((tmp_path / "steps.csv").open())
    frames = 3 * part.store.lengths[:2].sum()
    assert (float(line["loss"]), float(line["gradient_norm"]), float(line["rate"])) == (3.0, 1.5, 0.5)
    assert int(line["frames_per_second"]) == round(frames / 200) and line["updates"] == "2"


def test_a_log_that_cannot_be_written_ends_nothing(run, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "LOG_MINUTES", 0)
    (tmp_path / "run" / "steps.csv").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(SETTINGS)  # our own reading of it
    assert (tmp_path / "run" / "log.csv").exists()


def test_anonymous_memory(tmp_path, monkeypatch):
    before = anonymous_memory()
    if before is not None:
        with mmap.mmap(-1, 2**28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:  # 256 MiB of fresh memory
            for start in range(0, 2**28, 2**20):
                ballast[start : start + 2**20] = b"1" * 2**20
            assert 0.9 * 2**28 < anonymous_memory() - before < 1.5 * 2**28
    for text in ("RssAnon: much", "", None):
        monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
        if text is not None:
            (tmp_path / "status").write_text(text)
        else:
            (tmp_path / "status").unlink()
        assert anonymous_memory() is None
