"""The cascade: train every model of a scale in order, decode, score, and write the tables.

    python -m mini_pkd.cascade                                  tiny, on data_small/numbers: minutes
    python -m mini_pkd.cascade --scale small                    the paper at 1 : 100, on data_small/sentences
    python -m mini_pkd.cascade --scale full --data LibriSpeech  the paper

A run lives in one folder and can be stopped at any instant; the same command continues it.  What it leaves:

    config.json         the resolved settings: a folder belongs to one of them; and what changed on the way
    vocabulary.json     the BPE
    <MODEL>/            model.npz, log.csv, decoded test-*.txt, result.json (written last: the model is finished)
    results.json        every number of the tables
    report.md           Tables 1 and 2, and the figures beside it

Small models do not keep many cores busy: a step has hundreds of short kernels, and handing each of them to all
threads costs more than it gains.  But most models of a table do not depend on each other, so several are
trained side by side (`--jobs`), each in a process of its own with its share of the cores.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import UserError, checkpoint, ctrl_c_is_for_us, report, vocabulary_file, warm_up, wer
from .bpe import BPE, word_counts
from .command import UsageError, command, disk_errors, printable
from .corpus_folder import Problem, find_parts, missing_roles, read_part
from .estimate import describe, refuse_what_does_not_fit
from .fast_beam import beam_search
from .feature_store import FeatureStore, estimate_normaliser
from .lock import only_process
from .model_file import load_model, save_model
from .scales import MAY_CHANGE, SCALES, count_parameters, get_scale
from .seeds import generator
from .stop_signal import StopSignal
from .threads import usable_cores
from .train import Diverged, Interrupted, Part, train
from .transcript_file import read_transcript, write_transcript
from .transducer import Transducer

TEST_SETS = ("test-clean", "test-other")
REPOSITORY = Path(__file__).resolve().parent.parent


@command("cascade")
def main(argv=None):
    slot = None
    try:
        arguments = _parse(argv)
        slot = arguments.slot
        scale = get_scale(arguments.scale).override(arguments.settings)
        jobs = arguments.jobs if arguments.jobs is not None else _default_jobs(scale)
        command = printable("python -m mini_pkd.cascade " + shlex.join(sys.argv[1:] if argv is None else argv))
        command = arguments.command or command.strip()
        cascade = Cascade(scale, arguments.data, arguments.out, arguments.seed, command, arguments.strict, slot=slot)
        with _sigterm_is_ctrl_c(), disk_errors(cascade.out):
            if slot is not None:  # one of several processes: train, and let the parent report
                _end_with_parent()
                cascade.run(arguments.only)
            elif arguments.dry_run:
                print(describe(cascade, jobs))
            else:
                again = ["--scale", arguments.scale, *arguments.settings]
                cascade.run(arguments.only, jobs, again, arguments.memory)
                print(report.write_report([cascade.out]))
    except (Interrupted, KeyboardInterrupt):
        if slot is None:
            print("\ncascade: stopped; everything finished is kept, the same command continues.", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def _sigterm_is_ctrl_c():
    """Whoever is asked to leave while features are made leaves as after Ctrl-C, not with a bare exit status."""
    before = None
    with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _end_with_parent():
    """A process that trains one model must not outlive the command: the next one would train it too.

    The parent holds the other end of our stdin, and so an end of file means that it is gone, however it went.
    """

    def follow():
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _default_jobs(scale):
    return 1 if scale.name == "full" else min(usable_cores(), 4)


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m mini_pkd.cascade",
        description="Train the teacher, the students and the baselines of a scale, and write Table 1.",
        epilog="Any setting of scales.py is changed by name: epochs=3 alpha=0.05 T1.width=96.  A stopped run "
        "continues when the same command is given again.",
    )
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="settings to change, e.g. epochs=3")
    parser.add_argument("--scale", default="tiny", help=f"{', '.join(SCALES)} (default: tiny)")
    parser.add_argument("--data", metavar="DIR", help="corpus in LibriSpeech's layout (default: the scale's own)")
    parser.add_argument("--out", metavar="DIR", help="folder of this run (default: runs/SCALE, runs/SCALE-seedN)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="train just these, e.g. T1 S1; teachers must exist")
    parser.add_argument("--jobs", type=int, metavar="N", help="models trained side by side (default: one per core, "
                        "at most 4; 1 for full)")  # fmt: skip
    parser.add_argument("--memory", type=float, metavar="GB", help="memory that training may use; more is refused "
                        "(default: what is free)")  # fmt: skip
    parser.add_argument("--slot", type=int, help=argparse.SUPPRESS)  # which of the jobs this process is
    parser.add_argument("--command", help=argparse.SUPPRESS)  # ... and what the user typed, to be named in messages
    parser.add_argument("--strict", action="store_true", help="stop at the first bad utterance instead of listing it")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and stop")

    def refuse(message):  # argparse would print the usage first: two sentences
        raise UsageError(f"{message}; --help lists everything.")

    parser.error = refuse
    arguments = parser.parse_intermixed_args(argv)
    # "--only T1 S1 epochs=3": argparse gives everything to --only, and what has a "=" is a setting.
    given = arguments.only or []
    arguments.settings += [word for word in given if "=" in word]
    if arguments.only is not None:
        arguments.only = [word for word in given if "=" not in word]
        if not arguments.only:
            parser.error("--only wants the name of a model, for example T1")
    if arguments.seed < 0:
        parser.error(f"--seed must be at least 0, not {arguments.seed}")
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {arguments.jobs}")
    if arguments.memory is not None and not arguments.memory > 0:  # nan as well
        parser.error(f"--memory must be above 0, not {arguments.memory}")
    return arguments


class Cascade:
    """One run: a scale, a corpus, a seed, a folder."""

    def __init__(self, scale, data=None, out=None, seed=0, command="", strict=False, progress=True, slot=None):
        self.scale, self.settings, self.seed = scale, scale.settings, seed
        self.command, self.strict, self.progress, self.slot = command, strict, progress, slot
        self.data = Path(data) if data else _default_data(scale.settings.data)
        self.place = os.path.realpath(self.data)  # which, unlike Path.resolve, takes a loop of links for a name
        self.corpus = printable(os.path.basename(self.place))
        self.out = Path(out) if out else Path("runs") / (scale.name if seed == 0 else f"{scale.name}-seed{seed}")
        self.started = time.monotonic()

    def run(self, only=None, jobs=1, arguments=(), memory=None):
        """Everything, or just the models named in `only`; finished models are not touched.

        With jobs > 1 the models are trained by processes that get `arguments` (scale and settings) again.
        memory: the GB that may be used; None: what is free.
        """
        config = self._check_config() if self.slot is None else None
        chosen = self._choose(only)
        if self.slot is None:  # what was decoded with another beam is decoded again, or a table would hold both
            chosen |= {name for name in self._names() if self._trained(name)}
        models = [m for m in self.scale.models() if m.name in chosen and not self._finished(m.name)]
        if self.slot is not None:
            return self._run(models)
        again = [m.name for m in models if self._result_path(m.name).exists()]
        if again:
            self._say(f"{', '.join(again)}: decoded again, because the beam was another one")
        if models:
            refuse_what_does_not_fit(self.scale, [m for m in models if not self._trained(m.name)], jobs, memory)
            find_parts(self.data)  # raises if anything is missing, before a folder is made
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"the run folder {self.out} cannot be made ({reason}): choose another --out.") from None
        with only_process(self.out, "is training"):
            self._check_files(models)
            if config is not None:
                checkpoint.write_text_atomic(self.out / "config.json", config)
            self._run(models, jobs, arguments)
            return self._write_results()

    def _run(self, models, jobs=1, arguments=()):
        if not models:
            return
        parts = self._prepare()
        if self.slot is None:
            self._say("compiling the kernels, where that has not been done before: half a minute")
            warm_up.ensure()
        with StopSignal() as stop:
            if jobs > 1:  # also when one is left: another number of threads would round differently
                self._train_side_by_side(models, jobs, arguments, stop)
                return
            for model in models:
                self._train(model, parts, stop)
                if self.slot is None:
                    self._write_results()
                if stop.raised:
                    raise Interrupted

    def _train_side_by_side(self, models, jobs, arguments, stop):
        """Start a process per model as soon as its teacher is finished, `jobs` at a time."""
        # Long chains first: whoever teaches others must not wait behind a baseline.
        waiting = sorted(models, key=lambda m: ("teacher", "progressive", "direct", "baseline").index(m.role))
        threads = str(max(1, usable_cores() // jobs))
        environment = os.environ | {name: threads for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
        common = ["--data", self.data, "--out", self.out, "--seed", self.seed, "--command", self.command]
        common += ["--strict"] if self.strict else []
        running = {}
        failed, killed, told = [], {}, False
        while running or (waiting and not (failed or killed or stop.raised)):
            for model in list(waiting):
                ready = model.teacher not in {m.name for m in waiting} | running.keys()
                if ready and len(running) < jobs and not (failed or killed or stop.raised):
                    slot = min(set(range(jobs)) - {slot for slot, _ in running.values()})
                    words = [*arguments, *common, "--slot", slot, "--only", model.name]
                    with ctrl_c_is_for_us():  # what we want of the process it hears as SIGTERM
                        process = subprocess.Popen(
                            [sys.executable, "-m", "mini_pkd.cascade", *map(str, words)],
                            env=environment, stdin=subprocess.PIPE,  # see _end_with_parent
                        )  # fmt: skip
                    running[model.name] = slot, process
                    waiting.remove(model)
            time.sleep(0.1)
            if stop.raised and not told:
                told = True
                for _, process in running.values():
                    process.terminate()
            for name, (_, process) in list(running.items()):
                if process.poll() is not None:
                    process.stdin.close()
                    del running[name]
                    if self._finished(name):
                        self._write_results()
                    elif not stop.raised:
                        self._say(f"{name}: ended early; what is being trained is finished first")
                        if process.returncode in (0, 1, 2):
                            failed.append(name)
                        else:  # by a signal, or it was asked to stop as we are, but by somebody else
                            killed[name] = -process.returncode if process.returncode < 0 else signal.SIGTERM
        if stop.raised:
            raise Interrupted
        reasons = [f"training of {', '.join(failed)} ended early: do what its message above says"] if failed else []
        for name, number in killed.items():
            less = ", with a smaller --jobs if memory has run out" if number == signal.SIGKILL else ""
            reasons.append(
                f"training of {name} was ended from outside (signal {number}, {signal.strsignal(number)}): "
                f"give the same command again{less}"
            )
        if reasons:
            raise UserError("; ".join(reasons) + "; it continues where it was last saved, finished models are kept.")

    # --- before training ------------------------------------------------------------------------------------

    def _names(self):
        return [model.name for model in self.scale.models()]

    def _choose(self, only):
        """The names of the models to train: all, or those in `only`."""
        models = {model.name: model for model in self.scale.models()}
        for name in only or ():
            if name not in models:
                raise UserError(f"there is no model {name!r} in {self.scale.name}: it has {', '.join(models)}.")
        chosen = [model for model in models.values() if not only or model.name in only]
        names = {model.name for model in chosen}
        for model in chosen:
            if model.teacher and model.teacher not in names and not self._trained(model.teacher):
                raise UserError(
                    f"{model.name} learns from {model.teacher}, which is not trained yet in {self.out}: "
                    f"add {model.teacher} to --only."
                )
        return names

    def _config(self):
        return json.loads(json.dumps({"seed": self.seed, "data": self.corpus, **self.scale.as_dict()}))

    def _check_config(self):
        """A folder belongs to one configuration, but for what may change on the way: mixing two would make a table of
        neither.  Returns what config.json should be from now on, None: as it is."""
        path, config = self.out / "config.json", self._config()
        if not path.exists():
            return None
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            history = before.get("history", [])
            json.dumps(history, indent=1)  # from Python 3.12 on deeper lists are read than written
            before = _flatten(before)
            if not isinstance(history, list):
                raise ValueError
        except (OSError, ValueError, AttributeError, RecursionError):
            raise UserError(f"{path} cannot be read: choose another --out, or delete that folder.") from None
        different = {key: before.get(key) for key, value in _flatten(config).items() if before.get(key) != value}
        may_change = {f"settings.{name}" for name in MAY_CHANGE}
        rate, untrained = different.get("settings.peak_rate"), [m for m in self._names() if not self._trained(m)]
        if untrained and isinstance(rate, int | float) and rate > self.settings.peak_rate:
            may_change.add("settings.peak_rate")
        words = []  # as one would give them
        for key in [key for key in different if key not in may_change][:4]:
            value = f"={different[key]!r:.30}" if isinstance(different[key], int | float | str) else ""
            words.append(key.removeprefix("settings.").removeprefix("sizes.") + value)
        if words:
            raise UserError(
                f"{self.out} holds a run with other settings ({', '.join(words)}): give those, choose another --out, "
                f"or delete that folder."
            )
        if not different:
            return None
        if "settings.peak_rate" in different:
            self._say(f"peak_rate falls from {rate} to {self.settings.peak_rate} for {', '.join(untrained)}")
        history.append({"before": different, "trained": [m for m in self._names() if self._trained(m)]})
        return json.dumps(config | {"history": history}, indent=1) + "\n"

    def _check_files(self, models):
        """What is damaged, of the files that will be needed, is better found now than after hours."""
        path = self.out / "vocabulary.json"
        if not path.exists():
            return
        self.bpe = vocabulary_file.load(path)
        wanted = {plan.name for plan in models} | {plan.teacher for plan in models}
        for plan in self.scale.models():
            folder = self.out / plan.name
            if plan.name in wanted and (folder / "model.npz").exists():
                self._load(plan)
            elif plan.name in wanted and (folder / "training.npz").exists():
                checkpoint.load(folder / "training.npz")

    def features(self, role):
        """The folder of a part's features, shared by all runs beside this one that want the same.

        Two corpora of one name keep apart, and so do two types: their runs would overwrite each other's features.
        """
        place = hashlib.sha256(os.fsencode(self.place)).hexdigest()[:8]
        return self.out.parent / "features" / f"{self.corpus}-{role}-{self.settings.feature_type}-{place}"

    def _prepare(self):
        """Folders -> vocabulary, features, normaliser: {"train": Part, "dev": Part, "test-clean": store, ...}."""
        found = find_parts(self.data)
        note = missing_roles(found)
        first_time = self.slot is None
        if note and first_time:
            self._say(note)
        utterances, problems = {}, []
        for role, folders in found.items():
            utterances[role] = []
            for folder in folders:
                read, bad = read_part(folder, self.strict)
                utterances[role] += read
                problems += bad
        self.bpe = self._vocabulary(utterances["train"])
        stores = {}
        for role, listed in utterances.items():
            if listed:
                stores[role] = FeatureStore.build(
                    self.features(role), listed, dtype=np.dtype(self.settings.feature_type), strict=self.strict,
                    label=f"features of {role}" if self.progress else None,
                )  # fmt: skip
                problems += [Problem(f"{role} {p.where}", p.reason) for p in stores[role].problems]
        self.normaliser = estimate_normaliser([stores["train"]])
        for store in stores.values():
            store.normaliser = self.normaliser
        parts = {role: store for role, store in stores.items() if role in TEST_SETS}
        # Test sets keep every utterance: characters that no model can write are errors of all models alike.
        reduction = self.scale.sizes["T1"].config(self.bpe.size).encoder.reduction
        for role in ("train", "dev"):
            parts[role], bad = Part.encode(
                stores[role], self.bpe, self.settings.max_frames, reduction, self.strict
            )
            problems += [Problem(f"{role} {p.where}", p.reason) for p in bad]
        if problems and first_time:
            path = self.out / "skipped.txt"
            checkpoint.write_text_atomic(path, "".join(f"{problem}\n" for problem in problems))
            self._say(f"{len(problems)} utterances or files were left out; {path} lists them and why.")
        if first_time:
            hours = ", ".join(f"{role} {store.num_rows / 360000:.2f} h" for role, store in stores.items())
            asked = self.settings.vocab_size
            fewer = f" (of the {asked} asked for: there is no more to merge)" if self.bpe.size < asked else ""
            self._say(f"{self.corpus}: {hours}; {self.bpe.size} symbols{fewer}")
        return parts

    def _vocabulary(self, utterances):
        """The run's BPE.  The folder is claimed here: what can be wrong with settings and data is known by now."""
        path, config = self.out / "vocabulary.json", self.out / "config.json"
        known = path.exists()
        counts = word_counts(u.text for u in utterances)
        bpe = vocabulary_file.load(path) if known else BPE.train(counts, self.settings.vocab_size, self.progress)
        if not config.exists():
            checkpoint.write_text_atomic(config, json.dumps(self._config(), indent=1) + "\n")
        if not known:
            vocabulary_file.save(path, bpe)
        return bpe

    # --- one model --------------------------------------------------------------------------------------------

    def _train(self, plan, parts, stop):
        folder = self.out / plan.name
        size = self.scale.sizes[plan.size]
        model = Transducer(size.config(self.bpe.size), generator(self.seed, plan.name, "weights"))
        path = folder / "model.npz"
        plans = {plan.name: plan for plan in self.scale.models()}
        teacher = self._load(plans[plan.teacher])[0] if plan.teacher else None
        about = {"name": plan.name, "teacher": plan.teacher, "scale": self.scale.name, "seed": self.seed}
        if path.exists():  # trained, but killed before it was scored
            model, about = self._load(plan)
        else:
            told = f", taught by {plan.teacher}" if plan.teacher else ""
            self._say(f"{plan.name}: {model.num_parameters() / 1e6:.3f} M parameters{told}")
            try:
                about["training"] = train(
                    model, parts["train"], parts["dev"], self.bpe, self.settings, folder, self.seed, plan.name,
                    teacher, stop, self.progress, self.slot,
                )  # fmt: skip
            except Diverged as error:
                raise UserError(f"{error}: {self.command} peak_rate={self.settings.peak_rate / 2:g}") from None
            save_model(path, model, self.normaliser, self.bpe, **about)
        self._result_path(plan.name).unlink(missing_ok=True)  # of another beam, whose texts are now written over
        result = {
            **_facts(plan),
            "params": model.num_parameters(),
            **about["training"],
            "beam": self.settings.beam,
            "wer": {}, "ser": {}, "wer_ci95": {}, "ser_ci95": {}, "edits": {},
        }  # fmt: skip
        start = time.monotonic()
        for test_set in TEST_SETS:
            if test_set in parts:
                label, path = f"{plan.name} {test_set}", folder / f"{test_set}.txt"
                score = self._decode(model, parts[test_set], path, label, stop)
                result["wer"][test_set], result["ser"][test_set] = score.wer, score.ser
                for metric in ("wer", "ser"):
                    result[f"{metric}_ci95"][test_set] = list(wer.bootstrap_interval(score, metric))
                result["edits"][test_set] = score.edits.sum(axis=0).tolist()
        result["decoding_seconds"] = round(time.monotonic() - start, 1)
        rates = "   ".join(f"{s} WER {100 * result['wer'][s]:.2f} %" for s in result["wer"])
        self._say(f"{plan.name}: dev WER {100 * result['best_dev_wer']:.2f} %   {rates}")
        checkpoint.write_text_atomic(self._result_path(plan.name), json.dumps(result, indent=1) + "\n")
        (folder / "training.npz").unlink(missing_ok=True)

    def _load(self, plan):
        """-> (Transducer, about) of a model that this run has trained."""
        path = self.out / plan.name / "model.npz"
        model, _, bpe, about = load_model(path)
        if bpe != self.bpe:
            raise UserError(
                f"{path} has another vocabulary than this run ({bpe.fingerprint()}, not "
                f"{self.bpe.fingerprint()}): teacher and student must share one, train {plan.name} again."
            )
        if model.config != self.scale.sizes[plan.size].config(bpe.size) or "training" not in about:
            raise UserError(f"{path} is not the {plan.name} of this run: delete the folder {path.parent}.")
        return model, about

    def _decode(self, model, store, path, label, stop):
        """Beam search over a test set.  The references are looked at only afterwards, to score."""
        order = np.argsort(store.lengths, kind="stable")
        hypotheses = {}
        bar = tqdm(total=len(order), desc=label, unit="utt", disable=not self.progress, leave=False, position=self.slot)
        with bar:
            for start in range(0, len(order), 32):
                if stop.raised:
                    raise Interrupted
                indices = order[start : start + 32]
                rows = [store[i] for i in indices]
                enc, lengths = model.encode(np.concatenate(rows), store.lengths[indices])
                found = beam_search(model, enc, lengths, self.settings.beam, self.settings.max_symbols)
                for i, best in zip(indices, found, strict=True):
                    hypotheses[store.ids[i]] = self.bpe.decode(best[0].labels)
                bar.update(len(indices))
        write_transcript(path, {i: hypotheses[i] for i in store.ids})
        return wer.score(dict(zip(store.ids, store.texts, strict=True)), hypotheses)

    # --- results ------------------------------------------------------------------------------------------------

    def _result_path(self, name):
        return self.out / name / "result.json"

    def _trained(self, name):
        return (self.out / name / "model.npz").exists()

    def _finished(self, name):
        """Whether it is trained, and scored with the beam of these settings."""
        return self._result_path(name).exists() and self._read_result(name).get("beam") == self.settings.beam

    def _read_result(self, name):
        path = self._result_path(name)
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            json.dumps(result, indent=1)  # into results.json, later: see _check_config
            facts = _facts(next(plan for plan in self.scale.models() if plan.name == name))
            if {key: result[key] for key in facts} == facts and _holds_results(result):
                return result
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise UserError(f"{path} is damaged: delete it, and the same command scores {name} again.") from None

    def _write_results(self):
        models = []
        for plan in self.scale.models():
            if self._finished(plan.name):
                models.append(self._read_result(plan.name))
        size = {m["name"]: m["params"] for m in models}
        for m in models:
            m["compression"] = 1 - m["params"] / size["T1"] if "T1" in size else None
        results = {
            "scale": self.scale.name,
            "seed": self.seed,
            "command": self.command,
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
            "ladder": self._ladder(),
            "models": models,
            "paired": self._paired(size),
        }  # fmt: skip
        checkpoint.write_text_atomic(self.out / "results.json", json.dumps(results, indent=1) + "\n")
        return results

    def _ladder(self):
        """Table 2: students straight from T1, by falling size, each with the baseline of its size."""
        rows = [
            {"student": s.direct, "baseline": s.baseline, "size": s.size}
            for stages in self.scale.experiments
            for s in stages
        ]
        symbols = self.settings.vocab_size
        return sorted(rows, key=lambda row: -count_parameters(self.scale.sizes[row["size"]].config(symbols)))

    def _paired(self, trained):
        """Paired bootstrap tests of the comparisons that carry the paper's claims."""
        pairs = []
        for stages in self.scale.experiments:
            for s in stages:
                pairs += [(s.progressive, s.baseline), (s.direct, s.baseline), (s.progressive, s.direct)]
                pairs += [(s.progressive, "T1")]
        pairs = [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and set(pair) <= set(trained)]
        found = []
        references = {}
        for test_set in TEST_SETS:
            for a, b in pairs:
                files = [self.out / name / f"{test_set}.txt" for name in (a, b)]
                if not all(file.exists() for file in files):
                    continue
                if test_set not in references:
                    references[test_set] = self._references(test_set)
                scores = [wer.score(references[test_set], read_transcript(file)) for file in files]
                test = wer.paired_test(*scores)
                found.append({
                    "a": a, "b": b, "set": test_set, "difference": test.difference,
                    "low": test.low, "high": test.high, "p": test.p_value,
                })  # fmt: skip
        return found

    def _references(self, test_set):
        store = FeatureStore(self.features(test_set))
        return dict(zip(store.ids, store.texts, strict=True))

    def _say(self, sentence):
        if self.progress:
            tqdm.write(printable(sentence))
            sys.stdout.flush()


def _default_data(relative):
    """data_small/ stands beside the package in a clone; otherwise look from where the user is."""
    beside = REPOSITORY / relative
    return beside if beside.is_dir() else Path(relative)


def _facts(plan):
    """What a result says of its model that does not depend on training."""
    return {
        "name": plan.name,
        "role": plan.role,
        "experiment": list(plan.experiment),
        "stage": plan.stage,
        "size": plan.size,
        "teacher": plan.teacher,
    }


def _holds_results(result):
    """Whether a dictionary that was read has all numbers of a result.json, each of its kind."""

    def number(value):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18  # no nan, no inf

    def numbers(count):
        return lambda values: isinstance(values, list) and len(values) == count and all(map(number, values))

    kinds = {"wer": number, "ser": number, "wer_ci95": numbers(2), "ser_ci95": numbers(2), "edits": numbers(3)}
    return (
        all(number(result[key]) and result[key] >= 0 for key in ("params", "seconds", "decoding_seconds"))
        and result["params"] > 0
        and all(
            set(result[key]) == set(result["wer"]) <= set(TEST_SETS) and all(map(right, result[key].values()))
            for key, right in kinds.items()
        )
    )


def _flatten(values, prefix=""):
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def machine():
    """One line about this computer, for results.json."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {usable_cores()} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
