"""The cascade: the paper's algorithm, from a corpus to Table 1.

    python -m mini_pkd.cascade                                  tiny, on data_small/numbers: minutes
    python -m mini_pkd.cascade --scale small                    the paper at 1 : 100, on data_small/sentences
    python -m mini_pkd.cascade --scale full --data LibriSpeech  the paper
    python -m mini_pkd.cascade --seeds 3                        three times, and the table pooled over the seeds

    T1 = train(the largest size, no teacher)
    for each experiment, for each of its stages, at the stage's size, smaller and smaller:
        progressive = train(size, taught by the progressive student of the stage before; by T1 in the first)
        direct      = train(size, taught by T1)
        baseline    = train(size, no teacher)
    decode and score them all on the test sets; compare them pairwise

A run lives in one folder and can be stopped at any instant; the same command continues it.  Models that do not depend
on each other are trained side by side: the command starts itself again for each of them, at most `jobs` at a time, each
in its own slot, and makes the table when they have finished.

Left out here: who teaches whom (scales.py), the folder's files (run_folder.py), what is made when and in which process
(seed_runs.py, processes.py).
"""

import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from . import UserError, report, seed_runs, wer
from .command import command, disk_errors, printable
from .command_line import read_command_line
from .dry_run import describe
from .feature_store import FeatureStore
from .model_file import save_model
from .prepared_corpus import TEST_SETS, corpus_name, default_data, features_folder, prepare_corpus
from .processes import default_jobs, end_with_parent, sigterm_is_ctrl_c
from .run_folder import RunFolder
from .scales import SCALES, get_scale
from .score_models import score_model
from .seeds import generator
from .stop_signal import Interrupted, StopSignal, raise_if, sigterm_after
from .train import train
from .training_state import Diverged
from .transcript_file import read_transcript
from .transducer import Transducer


class Cascade:
    """One seed of a run: a scale, a corpus, a seed, a folder.  slot: None in the process that makes the table."""

    def __init__(self, scale, data=None, out=None, seed=0, command="", strict=False, progress=True, slot=None,
                 several=False):  # fmt: skip
        self.scale, self.settings, self.seed = scale, scale.settings, seed
        self.command, self.strict, self.progress, self.slot = command, strict, progress, slot
        self.data = Path(data) if data else default_data(scale.settings.data)
        self.corpus = corpus_name(self.data)
        self.out = Path(out) if out else Path("runs") / (scale.name if seed == 0 else f"{scale.name}-seed{seed}")
        self.folder = RunFolder(self.out, scale, seed, self.corpus, several)
        self.models = self.folder.models  # {name: scales.Model}, teachers before their students

    def run_slot(self, only):
        """Make the models named in `only`, for the process that makes the table."""
        todo = self.unfinished(only)
        if todo:
            corpus = self.prepare()
            with StopSignal() as stop:
                self.make(todo, corpus, stop)

    def make(self, todo, corpus, stop, when_finished=lambda: None):
        """Train, decode and score these models, one after the other."""
        for model in todo:
            network, training = self.train_model(model, corpus, stop)
            score_model(self, model, network, training, corpus, stop)
            when_finished()
            raise_if(stop)

    # --- before training --------------------------------------------------------------------------

    def unfinished(self, only):
        """The models to make: those without a result, of all or of those named in `only`."""
        folder, chosen = self.folder, set(only or self.models)
        for name in only or ():
            if name not in self.models:
                raise UserError(f"there is no model {name!r} in {self.scale.name}: it has {', '.join(self.models)}.")
            teacher = self.models[name].teacher
            if teacher and teacher not in chosen and not folder.trained(teacher):
                raise UserError(
                    f"{name} learns from {teacher}, which is not trained yet in {folder.path}; add {teacher} to --only."
                )
        if self.slot is None:  # if the beam has changed, all are decoded again: one table, one beam
            chosen |= {name for name in self.models if folder.trained(name)}
        return [model for name, model in self.models.items() if name in chosen and not folder.finished(name)]

    def prepare(self):
        """Folders of audio -> PreparedCorpus; the main process also lists what was left out."""
        main = self.slot is None
        corpus = prepare_corpus(
            self.data, self.out.parent / "features", self.settings,
            make_bpe=lambda utterances: self.folder.vocabulary(utterances, self.progress),
            strict=self.strict, progress=self.progress, say=self.say if main else None,
        )  # fmt: skip
        if corpus.problems and main:
            path = self.folder.write_skipped(corpus.problems)
            self.say(f"{len(corpus.problems)} utterances or files were left out; {path} says which and why.")
        return corpus

    def features(self, role):
        return features_folder(self.out.parent / "features", self.data, role, self.settings.feature_type)

    # --- one model --------------------------------------------------------------------------------

    def train_model(self, model, corpus, stop):
        """-> (Transducer with its best dev weights, facts about its training for result.json)."""
        path = self.folder.model_file(model.name)
        if path.exists():  # trained, but killed before it was scored
            network, about = self.folder.load(model.name)
            return network, about["training"]
        config = self.scale.sizes[model.size].config(corpus.bpe.size)
        network = Transducer(config, generator(self.seed, model.name, "weights"))
        teacher = self.folder.load(model.teacher)[0] if model.teacher else None
        taught = f", taught by {model.teacher}" if model.teacher else ""
        self.say(f"{self.folder.called(model.name)}: {network.num_parameters() / 1e6:.3f} M parameters{taught}")
        try:
            training = train(
                network, corpus.train, corpus.dev, corpus.bpe, self.settings, path.parent, self.seed, model.name,
                teacher, stop, self.progress, self.slot,
            )  # fmt: skip
        except Diverged as error:
            reason = str(error).replace(model.name, self.folder.called(model.name), 1)
            raise UserError(f"{reason}: {self.command} peak_rate={error.rate / 2:g}") from None
        about = {"name": model.name, "teacher": model.teacher, "scale": self.scale.name, "seed": self.seed}
        save_model(path, network, corpus.normaliser, corpus.bpe, **about, training=training)
        return network, training

    # --- the table --------------------------------------------------------------------------------

    def write_results(self):
        scores = self.scores()
        paired = seed_runs.paired_tests(self.compared(), {self.seed: scores})
        self.folder.write_results(self.command, paired, seed_runs.rates_by_speaker(scores))

    def compared(self):
        """The pairs of models whose comparison carries the paper's claims."""
        pairs = []
        for s in [stage for stages in self.scale.experiments for stage in stages]:
            progressive, direct, baseline = s.progressive, s.direct, s.baseline
            pairs += [(progressive, baseline), (direct, baseline), (progressive, direct)]
            pairs += [(progressive, "T1"), (direct, "T1"), (baseline, "T1")]
        return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1]]

    def scores(self):
        """{test set: {finished model: wer.Score}} of the decoded texts."""
        found, finished = {}, [name for name in self.models if self.folder.finished(name)]
        for test_set in TEST_SETS:
            files = {name: self.folder.text_file(name, test_set) for name in finished}
            files = {name: file for name, file in files.items() if file.exists()}
            if files:  # else the corpus has no such test set
                store = FeatureStore(self.features(test_set))
                references = dict(zip(store.ids, store.texts, strict=True))
                found[test_set] = {name: wer.score(references, read_transcript(file)) for name, file in files.items()}
        return found

    def say(self, sentence):
        if self.progress:
            tqdm.write(printable(sentence))
            sys.stdout.flush()


# --- the command ----------------------------------------------------------------------------------


@command("cascade")
def main(arguments=None):
    slot = None
    try:
        options = read_command_line(arguments, SCALES)
        slot = options.slot
        scale = get_scale(options.scale).override(options.settings)
        jobs = options.jobs if options.jobs is not None else default_jobs(scale)
        typed = "python -m mini_pkd.cascade " + shlex.join(sys.argv[1:] if arguments is None else arguments)
        typed = options.command or printable(typed).strip()
        about = {"command": typed, "strict": options.strict, "slot": slot, "several": options.seeds > 1}
        cascade = Cascade(scale, options.data, options.out, options.seed, **about)
        more = range(options.seed + 1, options.seed + options.seeds)
        cascades = [cascade, *(Cascade(scale, options.data, cascade.out, seed, **about) for seed in more)]
        with sigterm_is_ctrl_c(), sigterm_after(options.max_hours), disk_errors(cascade.out):
            if slot is not None:
                end_with_parent()
                cascade.run_slot(options.only)
            elif options.dry_run:
                print(describe(cascade, jobs, options.seeds, options.ranks))
            else:
                arguments = ["--scale", options.scale, *options.settings]
                seed_runs.run(cascades, options.only, jobs, arguments, options.memory)
                shown = [report.write_report([c.folder.path]) for c in cascades]
                print(report.write_report([cascade.out]) if more else shown[0])
    except (Interrupted, KeyboardInterrupt):
        if slot is None:
            print("\ncascade: stopped; all that is finished is kept, the same command continues.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
