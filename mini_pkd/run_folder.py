"""The files of a run, and how they are read again: a run can be stopped at any instant and is continued from these.

    config.json             all settings of the run, which must not change, and the history of the few that may
    vocabulary.json         the BPE
    skipped.txt             utterances that were left out, and why
    <MODEL>/training.npz    the state of a training that has not ended (training_state.py)
    <MODEL>/                model.npz, log.csv, decoded test-*.txt, result.json (written last: the model is finished)
    results.json            every number of the tables
    lock                    one process at a time (lock.py)

Each of them is replaced as a whole or not at all (checkpoint.py), and checked when it is read (records.py).
"""

import dataclasses
import json
import platform
from pathlib import Path

from . import UserError, checkpoint, vocabulary_file
from .bpe import BPE, word_counts
from .command_line import MAY_CHANGE
from .lock import only_process
from .model_file import load_model
from .prepared_corpus import TEST_SETS
from .records import COUNT, WORD, Each, Leaf, between, read_record
from .threads import usable_cores

AMOUNT = between(0, 1e15)


def _list_of(count, leaf):
    def fits(value):
        return isinstance(value, list) and len(value) == count and all(map(leaf.fits, value))

    return Leaf(f"a list of {count}, each {leaf.what},", fits)


ABOUT_MODEL = {"name": WORD, "role": WORD, "experiment": [COUNT], "stage": COUNT, "size": WORD, "teacher?": WORD}
ABOUT_TRAINING = {  # for the report
    "updates?": AMOUNT,
    "skipped_updates?": AMOUNT,
    "peak_rates?": [_list_of(2, AMOUNT)],
    "seconds": AMOUNT,
    "best_dev_wer?": AMOUNT,
    "best_dev_loss?": between(-1e15, 1e15),
}
SCORES = {  # by test set
    "wer": Each(AMOUNT),
    "ser": Each(AMOUNT),
    "wer_ci95": Each(_list_of(2, AMOUNT)),
    "ser_ci95": Each(_list_of(2, AMOUNT)),
    "edits": Each(_list_of(3, COUNT)),
}
RESULT = {
    **ABOUT_MODEL,
    "params": between(1, 1e15),
    **ABOUT_TRAINING,
    "beam?": COUNT,
    **SCORES,
    "decoding_seconds": AMOUNT,
}

SETTING = Leaf("a text, a number or null", lambda value: value is None or isinstance(value, str | int | float))
ANYTHING = Leaf("anything", lambda value: True)  # a list: compared as a whole
HISTORY = [{"before": Each(SETTING), "trained": [WORD]}]


def about_model(model):
    """What result.json says of a model before any training."""
    return {
        "name": model.name,
        "role": model.role,
        "experiment": list(model.experiment),
        "stage": model.stage,
        "size": model.size,
        "teacher": model.teacher,
    }


class RunFolder:
    """The folder of one run: a scale, a seed, the name of a corpus."""

    def __init__(self, path, scale, seed, corpus):
        self.path, self.scale, self.seed, self.corpus = Path(path), scale, seed, corpus
        self.models = {model.name: model for model in scale.models()}
        self.bpe = None  # known from `vocabulary` or `check_files` on

    def model_file(self, name):
        return self.path / name / "model.npz"

    def state_file(self, name):
        return self.path / name / "training.npz"

    def text_file(self, name, test_set):
        return self.path / name / f"{test_set}.txt"

    def result_file(self, name):
        return self.path / name / "result.json"

    def trained(self, name):
        return self.model_file(name).exists()

    def finished(self, name):
        """Whether it is trained, and scored with the beam of these settings."""
        return self.result_file(name).exists() and self.read_result(name).get("beam") == self.scale.settings.beam

    def locked(self):
        """For `with`: make the folder, and keep every other command out of it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"the run folder {self.path} cannot be made ({reason}); choose another --out.") from None
        return only_process(self.path, "is training")

    # --- config.json ------------------------------------------------------------------------------

    def config(self):
        return json.loads(json.dumps({"seed": self.seed, "data": self.corpus, **self.scale.as_dict()}))

    def updated_config(self, say=lambda sentence: None):
        """The new content of config.json; None: it need not be written.

        All models of a table must have the same settings; other ones than the folder's are refused here, except those
        that may change.
        """
        path, config = self.path / "config.json", self.config()
        if not path.exists():
            return None
        shape = _shape(config) | {"history?": HISTORY}
        before = read_record(path, shape, "choose another --out, or delete that folder")
        history = before.pop("history") or []
        before = _flatten(before)
        for field in dataclasses.fields(self.scale.settings):  # an older version had what is the default of a new one
            if before.get(f"settings.{field.name}") is None and field.default is not dataclasses.MISSING:
                before[f"settings.{field.name}"] = field.default
        different = {key: before.get(key) for key, value in _flatten(config).items() if before.get(key) != value}
        trained = [name for name in self.models if self.trained(name)]
        untrained = [name for name in self.models if name not in trained]
        may_change = {f"settings.{name}" for name in MAY_CHANGE}
        old_rate, new_rate = different.get("settings.peak_rate"), self.scale.settings.peak_rate
        if untrained and isinstance(old_rate, int | float) and old_rate > new_rate:
            may_change.add("settings.peak_rate")
        words = []  # the different settings, as they are typed
        for key in [key for key in different if key not in may_change][:4]:
            value = f"={different[key]!r:.30}" if isinstance(different[key], int | float | str) else ""
            words.append(key.removeprefix("settings.").removeprefix("sizes.") + value)
        if words:
            raise UserError(
                f"{self.path} holds a run with other settings ({', '.join(words)}); give those, choose another --out, "
                f"or delete that folder."
            )
        if not different:
            return None
        if "settings.peak_rate" in different:
            say(f"peak_rate falls from {old_rate} to {new_rate} for {', '.join(untrained)}")
        return config | {"history": [*history, {"before": different, "trained": trained}]}

    def write_config(self, config):
        if config is not None:
            _write_json(self.path / "config.json", config)

    def write_skipped(self, problems):
        """List what was left out; returns the file's path."""
        path = self.path / "skipped.txt"
        checkpoint.write_text_atomic(path, "".join(f"{problem}\n" for problem in problems))
        return path

    # --- vocabulary and models --------------------------------------------------------------------

    def vocabulary(self, utterances, progress=False):
        """The run's BPE, from its file or from the training set.

        config.json is written here, not earlier: by now settings and data are known to be usable.
        """
        path = self.path / "vocabulary.json"
        known = path.exists()
        size = self.scale.settings.vocab_size
        counts = word_counts(utterance.text for utterance in utterances)
        self.bpe = vocabulary_file.load(path) if known else BPE.train(counts, size, progress)
        if not (self.path / "config.json").exists():
            self.write_config(self.config())
        if not known:
            vocabulary_file.save(path, self.bpe)
        return self.bpe

    def load(self, name):
        """-> (Transducer, about) of a model that this run has trained."""
        path = self.model_file(name)
        network, _, bpe, about = load_model(path)
        if bpe != self.bpe:
            raise UserError(
                f"{path} has another vocabulary than this run ({bpe.fingerprint()}, not "
                f"{self.bpe.fingerprint()}), and teacher and student must share one; train {name} again."
            )
        if network.config != self.scale.sizes[self.models[name].size].config(bpe.size) or "training" not in about:
            raise UserError(f"{path} is not the {name} of this run; delete the folder {path.parent}.")
        return network, about

    def check_files(self, models):
        """Read the files that these models will need, because damage is better found now than after hours."""
        path = self.path / "vocabulary.json"
        if not path.exists():
            return
        self.bpe = vocabulary_file.load(path)
        needed = {model.name for model in models} | {model.teacher for model in models}
        for name in self.models:
            if name in needed and self.trained(name):
                self.load(name)
            elif name in needed and self.state_file(name).exists():
                checkpoint.load(self.state_file(name))

    # --- results ----------------------------------------------------------------------------------

    def read_result(self, name):
        """The content of a model's result.json, checked, because somebody may have edited it."""
        path, advice = self.result_file(name), f"delete it, and the same command scores {name} again"
        result = read_record(path, RESULT, advice)
        facts, test_sets = about_model(self.models[name]), result["wer"].keys()
        if {key: result[key] for key in facts} != facts:
            raise UserError(f"{path} is the result of another model; {advice}.")
        if not test_sets <= set(TEST_SETS) or any(result[key].keys() != test_sets for key in SCORES):
            raise UserError(f"{path} does not have one score of every kind for each test set; {advice}.")
        return {key: value for key, value in result.items() if value is not None or key == "teacher"}

    def write_result(self, name, result):
        _write_json(self.result_file(name), result)

    def write_results(self, command, paired_tests):
        """Write results.json; paired_tests: function of the names of the finished models."""
        models = [self.read_result(name) for name in self.models if self.finished(name)]
        size = {m["name"]: m["params"] for m in models}
        for m in models:
            m["compression"] = 1 - m["params"] / size["T1"] if "T1" in size else None
        results = {
            "scale": self.scale.name,
            "seed": self.seed,
            "command": command,
            "machine": machine(),
            "seconds": round(sum(m["seconds"] + m["decoding_seconds"] for m in models), 1),
            "data": self.corpus,
            "test_sets": [s for s in TEST_SETS if any(s in m["wer"] for m in models)],
            "settings": self.scale.as_dict()["settings"],
            "experiments": [
                {
                    "number": number,
                    "stages": [
                        {"stage": i, "teacher": s.teacher, "progressive": s.progressive, "direct": s.direct,
                         "baseline": s.baseline}
                        for i, s in enumerate(stages, start=1)
                    ],
                }
                for number, stages in enumerate(self.scale.experiments, start=1)
            ],
            "models": models,
            "paired": paired_tests(list(size)),
        }  # fmt: skip
        _write_json(self.path / "results.json", results)
        return results


def machine():
    """One line about this computer, for results.json."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {usable_cores()} cores, {platform.system()}, Python {platform.python_version()}"


def _write_json(path, content):
    checkpoint.write_text_atomic(path, json.dumps(content, indent=1) + "\n")


def _shape(config):
    """What another config.json must look like to be compared with this one (records.py)."""

    def shape(value):
        return _shape(value) if isinstance(value, dict) else ANYTHING if isinstance(value, list) else SETTING

    return {f"{key}?": shape(value) for key, value in config.items()}


def _flatten(values, prefix=""):
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
