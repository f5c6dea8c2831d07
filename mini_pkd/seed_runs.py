"""All seeds of a run: a folder for each, their models trained side by side, their results pooled.

    runs/tiny/                         one seed: the folder of its run (run_folder.py)
    runs/tiny/seed0/, seed1/, ...      several: such a folder for each of them
    runs/tiny/results.json             ... and the numbers pooled over the seeds, each seed's own under "runs"

A run of one seed grows: `--seeds 3` moves it to seed0/ and trains the two others.  The features, beside runs/tiny, and
the vocabulary do not depend on the seed and are made once.  A seed's models are dealt out before those of the next, so
that a run which is stopped has whole seeds to show; while a model waits for its teacher the next seed fills the gap.
"""

import contextlib
import functools
import json
import sys

import numpy as np

from . import UserError, warm_up, wer
from .command import progress_bar
from .corpus_folder import find_parts
from .estimate import refuse_what_does_not_fit
from .prepared_corpus import TEST_SETS
from .processes import ROLES, Job, train_side_by_side
from .run_folder import locked, write_json
from .stop_signal import StopSignal


def run(cascades, only=None, jobs=1, arguments=(), memory=None):
    """Make all models, or those named in `only`, of each seed, and the results; finished models are not touched.

    cascades: a Cascade for each seed, all with the same `out`
    jobs: how many models at a time; with more than one, their processes get `arguments` (scale and settings) again
    memory: the GB that may be used; None: what is free
    """
    first, folders = cascades[0], [c.folder for c in cascades]
    out, say, several = first.out, first.say, len(cascades) > 1
    if several and (out / "config.json").exists() and all(folder.path != out for folder in folders):
        seeds = ", ".join(str(c.seed) for c in cascades)
        raise UserError(
            f"{out} holds a run of one seed that is none of {seeds}; choose another --out, or --seed so that it is one."
        )
    untrained = any(not folder.trained(name) for folder in folders for name in folder.models)
    configs = [folder.updated_config(say, untrained) for folder in folders]
    todo = [(c, model) for c in cascades for model in c.unfinished(only)]
    again = [c.folder.called(model.name) for c, model in todo if c.folder.result_file(model.name).exists()]
    if again:
        say(f"{', '.join(again)}: decoded again, because the beam has changed")
    if todo:
        models = [model for c, model in todo if not c.folder.trained(model.name)]
        refuse_what_does_not_fit(first.scale, models, jobs, memory)
        find_parts(first.data)  # raises if there is no corpus, before a folder is made
    with contextlib.ExitStack() as locks:
        locks.enter_context(locked(out))
        for c, config in zip(cascades, configs, strict=True):
            c.folder.settle(several)
            if c.folder.path != out:
                locks.enter_context(locked(c.folder.path))
            c.folder.check_files([model for other, model in todo if other is c])
            c.folder.write_config(config)
        if todo:
            corpus = first.prepare()
            for folder in folders[1:]:
                folder.share(first.folder.bpe, corpus.problems)
            if several:
                write_results(cascades)  # of other sittings
            say("compiling the kernels, half a minute the first time")
            warm_up.ensure()
            _make(todo, cascades, corpus, jobs, arguments)
        write_results(cascades)


def _make(todo, cascades, corpus, jobs, arguments):
    """Train, decode and score all of `todo`, pairs of a Cascade and a Model."""
    several = cascades[0].progress and len(todo) > 1 and sys.stderr.isatty()  # a log has a line for each model anyway
    label = f"{len(todo)} models" if several else None
    place = jobs if jobs > 1 else None  # below the bars of the processes
    with (
        StopSignal() as stop,
        progress_bar(label, total=len(todo), unit="model", leave=False, position=place, smoothing=0) as bar,
    ):

        def when_finished(c):
            bar.update()
            c.write_results()
            if len(cascades) > 1 and all(map(c.folder.finished, c.models)):
                write_pooled(cascades)

        def job(c, model):
            words = [*arguments, "--data", c.data, "--out", c.out, "--seed", c.seed, "--command", c.command]
            words += ["--strict"] * c.strict + ["--only", model.name]
            name, teacher = (each and c.folder.called(each) for each in (model.name, model.teacher))
            finished = functools.partial(c.folder.finished, model.name)
            return Job(name, teacher, words, finished, functools.partial(when_finished, c))

        if jobs > 1:  # also when one model is left: with other threads it would end in other bits
            in_turn = sorted(todo, key=lambda pair: (cascades.index(pair[0]), ROLES.index(pair[1].role)))
            train_side_by_side([job(*pair) for pair in in_turn], jobs, stop, cascades[0].say)
        else:
            for c, model in todo:
                c.make([model], corpus, stop, functools.partial(when_finished, c))


# --- results --------------------------------------------------------------------------------------


def write_results(cascades):
    for c in cascades:
        c.write_results()
    if len(cascades) > 1:
        write_pooled(cascades)


def write_pooled(cascades):
    """Write results.json of all seeds, from the results.json of each of them and from the decoded texts."""
    runs = [json.loads((c.folder.path / "results.json").read_text()) for c in cascades]
    fullest = max(runs, key=lambda run: len(run["models"]))
    scores = {c.seed: c.scores() for c in cascades}
    found = {run["seed"]: {model["name"]: model for model in run["models"]} for run in runs}
    pooled = {
        "scale": fullest["scale"],
        "seeds": list(scores),
        "command": cascades[0].command,
        "machine": fullest["machine"],
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        **{key: fullest[key] for key in ("data", "test_sets", "settings", "experiments")},
        "models": [
            _pooled_model({seed: models[name] for seed, models in found.items() if name in models}, scores)
            for name in cascades[0].models
            if any(name in models for models in found.values())
        ],
        "paired": paired_tests(cascades[0].compared(), scores),
        "runs": runs,
    }
    write_json(cascades[0].out / "results.json", pooled)


def _pooled_model(found, scores):
    """{seed: a model as it stands in the results of that seed} -> the same of all seeds.

    Rates are means, as of one test set that was said once per seed; edits and seconds are sums.
    """
    facts = next(iter(found.values()))
    keys = ("name", "role", "experiment", "stage", "size", "teacher", "params", "compression")
    model = {key: facts[key] for key in keys} | {"seeds": list(found)}
    rates = ("wer", "ser", "wer_ci95", "ser_ci95", "edits")
    model |= {key: {} for key in rates}
    for test_set in TEST_SETS:
        here = {seed: m for seed, m in found.items() if test_set in m["wer"]}
        if here:
            of_seeds = [scores[seed][test_set][facts["name"]] for seed in here]
            for metric in ("wer", "ser"):
                model[metric][test_set] = sum(m[metric][test_set] for m in here.values()) / len(here)
                model[f"{metric}_ci95"][test_set] = list(wer.bootstrap_interval(of_seeds, metric))
            model["edits"][test_set] = [
                sum(n) for n in zip(*(m["edits"][test_set] for m in here.values()), strict=True)
            ]
    return model | {"seconds": round(sum(m["seconds"] for m in found.values()), 1)}


def paired_tests(pairs, scores):
    """What results.json says of each pair; scores: {seed: {test set: {model: wer.Score}}}."""
    found = []
    for test_set in TEST_SETS:
        for a, b in pairs:
            both = {seed: of.get(test_set, {}) for seed, of in scores.items()}
            both = {seed: (of[a], of[b]) for seed, of in both.items() if a in of and b in of}
            if not both:
                continue
            test = wer.paired_test(*zip(*both.values(), strict=True))
            numbers = {"difference": test.difference, "low": test.low, "high": test.high, "p": test.p_value}
            if len(scores) > 1:
                numbers["differences"] = {seed: score_a.wer - score_b.wer for seed, (score_a, score_b) in both.items()}
            found.append({"a": a, "b": b, "set": test_set, **numbers, "relative": list(test.relative)})
    return found


def rates_by_speaker(scores):
    """The WER of each speaker of a test set, who is the first field of an utterance's name; scores as of one seed."""
    found = []
    for test_set, by_model in scores.items():
        speakers = np.array([name.split("-")[0] for name in next(iter(by_model.values())).ids])
        for speaker in np.unique(speakers):
            own = {name: _part(score, speakers == speaker) for name, score in by_model.items()}
            words = int(next(iter(own.values())).words.sum())
            rates = {name: score.wer for name, score in own.items()}
            found.append({"set": test_set, "speaker": str(speaker), "words": words, "wer": rates})
    return found


def _part(score, chosen):
    return wer.Score(tuple(np.array(score.ids)[chosen].tolist()), score.words[chosen], score.edits[chosen])
