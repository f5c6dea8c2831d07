"""The cascade: train every model of a scale in order, decode, score, and write the tables.

    python -m mini_pkd.cascade                                  tiny, on data_small/numbers: minutes
    python -m mini_pkd.cascade --scale small                    the paper at 1 : 100, on data_small/sentences
    python -m mini_pkd.cascade --scale full --data LibriSpeech  the paper

A run lives in one folder and can be stopped at any instant; the same command continues it.  What it leaves:

    config.json         the resolved settings: a folder belongs to one of them
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

from . import UserError, checkpoint, report, warm_up, wer
from .bpe import BPE
from .corpus import disk_errors, find_parts, missing_roles, read_part, word_counts
from .decode import beam_search
from .estimate import describe
from .feature_store import FeatureStore, estimate_normaliser, only_process
from .model_file import load_model, save_model
from .scales import SCALES, count_parameters, get_scale
from .specaugment import generator
from .stop_signal import StopSignal
from .train import Interrupted, Part, train
from .transducer import Transducer

TEST_SETS = ("test-clean", "test-other")
REPOSITORY = Path(__file__).resolve().parent.parent


def main(argv=None):
    """The command; returns its exit status: 0, 2 after a sentence on stderr, 130 when interrupted."""
    slot = None
    try:
        arguments = _parse(argv)
        slot = arguments.slot
        scale = get_scale(arguments.scale).override(arguments.settings)
        jobs = arguments.jobs if arguments.jobs is not None else _default_jobs(scale)
        command = "python -m mini_pkd.cascade " + shlex.join(sys.argv[1:] if argv is None else argv)
        cascade = Cascade(
            scale, arguments.data, arguments.out, arguments.seed, command.strip(), arguments.strict, slot=slot
        )
        with _sigterm_is_ctrl_c(), disk_errors(cascade.out):
            if slot is not None:  # one of several processes: train, and let the parent report
                _end_with_parent()
                cascade.run(arguments.only)
            elif arguments.dry_run:
                print(describe(cascade, jobs))
            else:
                cascade.run(arguments.only, jobs, ["--scale", arguments.scale, *arguments.settings])
                print(report.write_report([cascade.out]))
    except UserError as error:
        print(f"mini_pkd: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        if slot is None:
            print("\nmini_pkd: stopped; everything finished is kept, the same command continues.", file=sys.stderr)
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
    Ctrl-C is the parent's business; what it wants of us comes as SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow():
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _default_jobs(scale):
    return 1 if scale.name == "full" else min(os.cpu_count() or 1, 4)


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
    parser.add_argument("--slot", type=int, help=argparse.SUPPRESS)  # which of the jobs this process is
    parser.add_argument("--strict", action="store_true", help="stop at the first bad utterance instead of listing it")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and stop")

    def refuse(message):  # argparse would print the usage first: two sentences
        raise UserError(f"{message}; --help lists everything.")

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
    return arguments


class Cascade:
    """One run: a scale, a corpus, a seed, a folder."""

    def __init__(self, scale, data=None, out=None, seed=0, command="", strict=False, progress=True, slot=None):
        self.scale, self.settings, self.seed = scale, scale.settings, seed
        self.command, self.strict, self.progress, self.slot = command, strict, progress, slot
        self.data = Path(data) if data else _default_data(scale.settings.data)
        self.corpus = self.data.resolve().name
        self.out = Path(out) if out else Path("runs") / (scale.name if seed == 0 else f"{scale.name}-seed{seed}")
        self.started = time.monotonic()

    def run(self, only=None, jobs=1, arguments=()):
        """Everything, or just the models named in `only`; finished models are not touched.

        With jobs > 1 the models are trained by processes that get `arguments` (scale and settings) again.
        """
        models = [m for m in self._choose(only) if not self._result_path(m.name).exists()]
        if self.slot is not None:
            return self._run(models)
        self._check_config()
        if models:
            find_parts(self.data)  # raises if anything is missing, before a folder is made
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"the run folder {self.out} cannot be made ({reason}): choose another --out.") from None
        with only_process(self.out, "is training"):
            self._check_files(models)
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
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment = os.environ | {name: threads for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
        common = ["--data", self.data, "--out", self.out, "--seed", self.seed, *(["--strict"] if self.strict else [])]
        running = {}
        failed, told = [], False
        while running or (waiting and not failed and not stop.raised):
            for model in list(waiting):
                ready = model.teacher is None or self._result_path(model.teacher).exists()
                if ready and len(running) < jobs and not failed and not stop.raised:
                    slot = min(set(range(jobs)) - {slot for slot, _ in running.values()})
                    words = [*arguments, *common, "--slot", slot, "--only", model.name]
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
                    if self._result_path(name).exists():
                        self._write_results()
                    elif not stop.raised:
                        failed.append(name)
        if stop.raised:
            raise Interrupted
        if failed:
            raise UserError(
                f"training of {', '.join(failed)} ended early, see its message above: mend that and give the "
                f"same command again; the finished models are kept."
            )

    # --- before training ------------------------------------------------------------------------------------

    def _choose(self, only):
        models = {model.name: model for model in self.scale.models()}
        for name in only or ():
            if name not in models:
                raise UserError(f"there is no model {name!r} in {self.scale.name}: it has {', '.join(models)}.")
        chosen = [model for model in models.values() if not only or model.name in only]
        names = {model.name for model in chosen}
        for model in chosen:
            if model.teacher and model.teacher not in names and not self._result_path(model.teacher).exists():
                raise UserError(
                    f"{model.name} learns from {model.teacher}, which is not trained yet in {self.out}: "
                    f"add {model.teacher} to --only."
                )
        return chosen

    def _config(self):
        return json.loads(json.dumps({"seed": self.seed, "data": self.corpus, **self.scale.as_dict()}))

    def _check_config(self):
        """A folder belongs to one resolved configuration: mixing two would make a table of neither."""
        path, config = self.out / "config.json", _flatten(self._config())
        if not path.exists():
            return
        try:
            before = _flatten(json.loads(path.read_text()))
        except (OSError, ValueError, AttributeError):
            raise UserError(f"{path} cannot be read: choose another --out, or delete that folder.") from None
        different = [key for key in config if key not in before or before[key] != config[key]]
        if different:
            raise UserError(
                f"{self.out} holds a run with other settings ({', '.join(different[:4])}): choose another --out, "
                f"or delete that folder."
            )

    def _check_files(self, models):
        """What is damaged, of the files that will be needed, is better found now than after hours."""
        for plan in self.scale.models():
            if self._result_path(plan.name).exists():
                self._read_result(plan.name)
        path = self.out / "vocabulary.json"
        if not path.exists():
            return
        self.bpe = BPE.load(path)
        wanted = {plan.name for plan in models} | {plan.teacher for plan in models}
        for plan in self.scale.models():
            folder = self.out / plan.name
            if plan.name in wanted and (folder / "model.npz").exists():
                self._load(plan)
            elif plan.name in wanted and (folder / "training.npz").exists():
                checkpoint.load(folder / "training.npz")

    def features(self, role):
        """The folder of a part's features, shared by all runs beside this one; two corpora of one name keep apart."""
        place = hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:8]
        return self.out.parent / "features" / f"{self.corpus}-{role}-{place}"

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
                problems += stores[role].problems
        self.normaliser = estimate_normaliser([stores["train"]])
        for store in stores.values():
            store.normaliser = self.normaliser
        parts = {role: store for role, store in stores.items() if role in TEST_SETS}
        for role in ("train", "dev"):
            parts[role], bad = Part.encode(stores[role], self.bpe, self.settings.max_frames)
            problems += bad
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
        bpe = BPE.load(path) if known else BPE.train(word_counts(utterances), self.settings.vocab_size, self.progress)
        if not config.exists():
            checkpoint.write_text_atomic(config, json.dumps(self._config(), indent=1) + "\n")
        if not known:
            bpe.save(path)
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
            about["training"] = train(
                model, parts["train"], parts["dev"], self.bpe, self.settings, folder, self.seed, plan.name,
                teacher, stop, self.progress, self.slot,
            )  # fmt: skip
            save_model(path, model, self.normaliser, self.bpe, **about)
        result = {
            "name": plan.name,
            "role": plan.role,
            "experiment": list(plan.experiment),
            "stage": plan.stage,
            "size": plan.size,
            "teacher": plan.teacher,
            "params": model.num_parameters(),
            **about["training"],
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
                result["edits"][test_set] = [score.substitutions, score.deletions, score.insertions]
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
        wer.write_transcript(path, {i: hypotheses[i] for i in store.ids})
        return wer.score(dict(zip(store.ids, store.texts, strict=True)), hypotheses)

    # --- results ------------------------------------------------------------------------------------------------

    def _result_path(self, name):
        return self.out / name / "result.json"

    def _read_result(self, name):
        path = self._result_path(name)
        try:
            result = json.loads(path.read_text())
            if result["name"] == name and {"params", "seconds", "decoding_seconds", "wer"} <= result.keys():
                return result
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{path} is damaged: delete it, and the same command scores {name} again.") from None

    def _write_results(self):
        models = []
        for plan in self.scale.models():
            if self._result_path(plan.name).exists():
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
                scores = [wer.score(references[test_set], wer.read_transcript(file)) for file in files]
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
            tqdm.write(sentence)
            sys.stdout.flush()


def _default_data(relative):
    """data_small/ stands beside the package in a clone; otherwise look from where the user is."""
    beside = REPOSITORY / relative
    return beside if beside.is_dir() else Path(relative)


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
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
