"""warm_up.py: a process of its own compiles, once."""

import subprocess

from mini_pkd import warm_up


def test_the_cache_is_filled_by_one_other_process(monkeypatch):
    started = []

    class Process:
        def __init__(self, words, **_):
            started.append(words[-2:])

        def wait(self):
            return 0

        kill = wait

    monkeypatch.setattr(warm_up, "_done", False)
    monkeypatch.setattr(subprocess, "Popen", Process)
    warm_up.ensure()
    warm_up.ensure()
    assert started == [["-m", "mini_pkd.warm_up"]]


def test_every_form_of_the_loss_is_compiled(monkeypatch):
    """RNN-T alone and both kinds of KL: a run that meets a kernel for the first time would compile it itself."""
    forms, real = set(), warm_up.lattice_loss

    def lattice_loss(model, teacher, batch, features, settings, dropout):
        forms.add((teacher is not None, settings.kl))
        return real(model, teacher, batch, features, settings, dropout)

    monkeypatch.setattr(warm_up, "lattice_loss", lattice_loss)
    warm_up.compile_all()
    assert forms == {(taught, kl) for taught in (False, True) for kl in ("full", "collapsed")}
