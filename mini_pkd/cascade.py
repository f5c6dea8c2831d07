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
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import UserError, checkpoint, report, wer
from .bpe import BPE
from .corpus import FeatureStore, estimate_normaliser, find_parts, missing_roles, read_part, word_counts
from .decode import beam_search
from .scales import SCALES, count_parameters, get_scale
from .specaugment import generator
from .train import Interrupted, Part, StopSignal, load_model, save_model, train
from .transducer import Transducer

TEST_SETS = ("test-clean", "test-other")
REPOSITORY = Path(__file__).resolve().parent.parent


def main(argv=None):
    """The command; returns its exit status: 0, 2 after a sentence on stderr, 130 when interrupted."""
    arguments = _parse(argv)
    command = "python -m mini_pkd.cascade " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        scale = get_scale(arguments.scale).override(arguments.settings)
        if arguments.dry_run:
            print(describe(scale))
            return 0
        cascade = Cascade(
            scale, arguments.data, arguments.out, arguments.seed, command.strip(), arguments.strict, slot=arguments.slot
        )
        if arguments.slot is not None:  # one of several processes: train, and let the parent report
            cascade.run(arguments.only)
            return 0
        jobs = arguments.jobs or (1 if scale.name == "full" else min(os.cpu_count() or 1, 4))
        if jobs < 1:
            raise UserError(f"--jobs {jobs} leaves nobody to train: give a number of at least 1.")
        cascade.run(arguments.only, jobs, ["--scale", arguments.scale, *arguments.settings])
        print(report.write_report([cascade.out]))
    except UserError as error:
        print(f"mini_pkd: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        print("\nmini_pkd: stopped; everything finished is kept, the same command continues.", file=sys.stderr)
        return 130
    return 0


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
    arguments = parser.parse_intermixed_args(argv)
    # "--only T1 S1 epochs=3": argparse gives everything to --only, and what has a "=" is a setting.
    given = arguments.only or []
    arguments.settings += [word for word in given if "=" in word]
    arguments.only = [word for word in given if "=" not in word] or None
    return arguments


class Cascade:
    """One run: a scale, a corpus, a seed, a folder."""

    def __init__(self, scale, data=None, out=None, seed=0, command="", strict=False, progress=True, slot=None):
        self.scale, self.settings, self.seed = scale, scale.settings, seed
        self.command, self.strict, self.progress, self.slot = command, strict, progress, slot
        self.data = Path(data) if data else _default_data(scale.settings.data)
        self.out = Path(out) if out else Path("runs") / (scale.name if seed == 0 else f"{scale.name}-seed{seed}")
        self.started = time.monotonic()

    def run(self, only=None, jobs=1, arguments=()):
        """Everything, or just the models named in `only`; finished models are not touched.

        With jobs > 1 the models are trained by processes that get `arguments` (scale and settings) again.
        """
        models = [m for m in self._choose(only) if not self._result_path(m.name).exists()]
        self._claim_folder()
        if models:
            parts = self._prepare()
            with StopSignal() as stop:
                if jobs > 1 and len(models) > 1:
                    self._train_side_by_side(models, jobs, arguments, stop)
                else:
                    for model in models:
                        self._train(model, parts, stop)
                        if self.slot is None:
                            self._write_results()
                        if stop.raised:
                            raise Interrupted
        if self.slot is None:
            return self._write_results()

    def _train_side_by_side(self, models, jobs, arguments, stop):
        """Start a process per model as soon as its teacher is finished, `jobs` at a time."""
        # Long chains first: whoever teaches others must not wait behind a baseline.
        waiting = sorted(models, key=lambda m: ("teacher", "progressive", "direct", "baseline").index(m.role))
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment = os.environ | {name: threads for name in ("OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
        common = ["--data", self.data, "--out", self.out, "--seed", self.seed, *(["--strict"] if self.strict else [])]
        running = {}
        failed = []
        while running or (waiting and not failed and not stop.raised):
            for model in list(waiting):
                ready = model.teacher is None or self._result_path(model.teacher).exists()
                if ready and len(running) < jobs and not failed and not stop.raised:
                    slot = min(set(range(jobs)) - {slot for slot, _ in running.values()})
                    words = [*arguments, *common, "--slot", slot, "--only", model.name]
                    process = subprocess.Popen(
                        [sys.executable, "-m", "mini_pkd.cascade", *map(str, words)], env=environment
                    )
                    running[model.name] = slot, process
                    waiting.remove(model)
            time.sleep(0.1)
            if stop.raised:  # Ctrl-C reached the children too, SIGTERM did not
                for _, process in running.values():
                    process.terminate()
            for name, (_, process) in list(running.items()):
                if process.poll() is not None:
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

    def _claim_folder(self):
        """A folder belongs to one resolved configuration: mixing two would make a table of neither."""
        config = json.loads(json.dumps({"seed": self.seed, "data": self.data.name, **self.scale.as_dict()}))
        path = self.out / "config.json"
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {self.out} cannot be made ({error.strerror}): choose another --out."
            ) from None
        if not path.exists():
            checkpoint.write_text_atomic(path, json.dumps(config, indent=1) + "\n")
            return
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            raise UserError(f"{path} cannot be read: choose another --out, or delete that folder.") from None
        different = [key for key in _flatten(config) if _flatten(before).get(key) != _flatten(config)[key]]
        if different:
            raise UserError(
                f"{self.out} holds a run with other settings ({', '.join(different[:4])}): choose another --out, "
                f"or delete that folder."
            )

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
                folder = self.out.parent / "features" / f"{self.data.resolve().name}-{role}"
                stores[role] = FeatureStore.build(
                    folder, listed, dtype=np.dtype(self.settings.feature_type), strict=self.strict,
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
            self._say(f"{self.data.name}: {hours}; {self.bpe.size} symbols{fewer}")
        return parts

    def _vocabulary(self, utterances):
        path = self.out / "vocabulary.json"
        if path.exists():
            return BPE.load(path)
        bpe = BPE.train(word_counts(utterances), self.settings.vocab_size, progress=self.progress)
        bpe.save(path)
        return bpe

    # --- one model --------------------------------------------------------------------------------------------

    def _train(self, plan, parts, stop):
        folder = self.out / plan.name
        size = self.scale.sizes[plan.size]
        model = Transducer(size.config(self.bpe.size), generator(self.seed, plan.name, "weights"))
        path = folder / "model.npz"
        teacher = self._load(plan.teacher) if plan.teacher else None
        about = {"name": plan.name, "teacher": plan.teacher, "scale": self.scale.name, "seed": self.seed}
        if path.exists():  # trained, but killed before it was scored
            model, _, _, about = load_model(path)
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
                score = self._decode(model, parts[test_set], folder / f"{test_set}.txt", f"{plan.name} {test_set}")
                result["wer"][test_set], result["ser"][test_set] = score.wer, score.ser
                for metric in ("wer", "ser"):
                    result[f"{metric}_ci95"][test_set] = list(wer.bootstrap_interval(score, metric))
                result["edits"][test_set] = [score.substitutions, score.deletions, score.insertions]
        result["decoding_seconds"] = round(time.monotonic() - start, 1)
        rates = "   ".join(f"{s} WER {100 * result['wer'][s]:.2f} %" for s in result["wer"])
        self._say(f"{plan.name}: dev WER {100 * result['best_dev_wer']:.2f} %   {rates}")
        checkpoint.write_text_atomic(self._result_path(plan.name), json.dumps(result, indent=1) + "\n")
        (folder / "training.npz").unlink(missing_ok=True)

    def _load(self, name):
        path = self.out / name / "model.npz"
        model, _, bpe, _ = load_model(path)
        if bpe != self.bpe:
            raise UserError(
                f"{path} has another vocabulary than this run ({bpe.fingerprint()}, not "
                f"{self.bpe.fingerprint()}): teacher and student must share one, train {name} again."
            )
        return model

    def _decode(self, model, store, path, label):
        """Beam search over a test set.  The references are looked at only afterwards, to score."""
        order = np.argsort(store.lengths, kind="stable")
        hypotheses = {}
        bar = tqdm(total=len(order), desc=label, unit="utt", disable=not self.progress, leave=False, position=self.slot)
        with bar:
            for start in range(0, len(order), 32):
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

    def _write_results(self):
        models = []
        for plan in self.scale.models():
            path = self._result_path(plan.name)
            if path.exists():
                models.append(json.loads(path.read_text()))
        size = {m["name"]: m["params"] for m in models}
        for m in models:
            m["compression"] = 1 - m["params"] / size["T1"] if "T1" in size else None
        results = {
            "scale": self.scale.name,
            "seed": self.seed,
            "command": self.command,
            "machine": machine(),
            "seconds": round(sum(m["seconds"] + m["decoding_seconds"] for m in models), 1),
            "data": self.data.name,
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
        folder = self.out.parent / "features" / f"{self.data.resolve().name}-{test_set}"
        store = FeatureStore(folder)
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


def describe(scale):
    """What a run of this scale would train: sizes and rough needs."""
    s = scale.settings
    lines = [
        f"{scale.name}: {s.data}, {s.vocab_size} symbols, {s.epochs} epochs, batches of {s.batch_utterances} "
        f"utterances or {s.batch_frames} frames",
        f"{'model':6s} {'parameters':>12s} {'memory':>9s}  taught by",
    ]
    for model in scale.models():
        config = scale.sizes[model.size].config(s.vocab_size)
        P = count_parameters(config)
        lines.append(f"{model.name:6s} {P / 1e6:10.3f} M {_memory(config, s) / 1e9:6.2f} GB  {model.teacher or '-'}")
    return "\n".join(lines)


def _memory(config, settings):
    """Bytes of one training: parameters x (value, gradient, m, v, best), saved activations of a batch, lattice."""
    e = config.encoder
    rates = [0.5 ** min(i, e.pools) for i in range(e.blocks)]
    row = 4 * (e.width * (4 * e.expansion + 16) + e.heads * e.window)
    return 20 * count_parameters(config) + settings.batch_frames * sum(rates) * row + 150e6


if __name__ == "__main__":
    sys.exit(main())
