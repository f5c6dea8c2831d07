"""Does a test notice?  Each mutant is a wrong change that would leave the paper's claims without their ground.

    python tests/mutants.py                         all of them
    python tests/mutants.py --only alpha lstm.py    those whose names hold one of these words, or of these files
    python tests/mutants.py --jobs 2                two at a time

The package and its tests are copied to a temporary folder, one mutant is put in, and only the tests that should see
it are run; the working tree stays as it is.  A mutant is *killed* when a test fails (its name stands behind the arrow),
or when the tests do not end in time.  One that SURVIVED shows a claim that no test holds: write that test.  The exit
status is then 1.

Not part of CI, because it takes minutes.  What CI checks, in test_mutants.py, is that every mutant still
fits the code: when you change a line that stands here, change it here, too.
"""

import argparse
import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """`old`, which stands in mini_pkd/`file` exactly once, becomes `new`; `tests`, below tests/, must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def of(file, tests, *mutants):
    """Mutants of one file that the same tests must notice: (name, old, new) each."""
    return [Mutant(name, file, old, new, tests) for name, old, new in mutants]


MUTANTS = [
    # --- one training step ------------------------------------------------------------------------------------------
    *of(
        "train.py", "test_wiring.py",
        ("the student sees unmasked features",
         "model.lattice_inputs(batch, features, dropout)", "model.lattice_inputs(batch, batch.features, dropout)"),
        ("the teacher sees unmasked features",
         "teacher.lattice_inputs(batch, features)", "teacher.lattice_inputs(batch, batch.features)"),
        ("the teacher drops",
         "teacher.lattice_inputs(batch, features)", "teacher.lattice_inputs(batch, features, dropout)"),
        ("alpha is not passed", "alpha=settings.alpha, ", ""),
        ("temperature is not passed", "temperature=settings.temperature, ", ""),
        ("kl is not passed", "kind=settings.kl, ", ""),
        ("mixing is not passed", "mixing=settings.mixing,", ""),
        ("kl_weighting is not passed", "kl_weighting=settings.kl_weighting, ", ""),
        ("clip is not passed", "Adam(model, settings.clip)", "Adam(model)"),
        ("floor_rate is not passed", ", settings.floor_rate", ""),
        ("the rate of the next step",
         "learning_rate(step, plan", "learning_rate(step + 1, plan"),
        ("masks ignore the epoch", '"masks", epoch, i', '"masks", i'),
        ("no dropout", "DropoutKeys(settings.dropout, ", "DropoutKeys(0.0, "),
        ("dropout ignores the step", '"dropout", step', '"dropout"'),
    ),
    *of(
        "training_state.py", "test_wiring.py",
        ("the dev set only after epochs", "return updates > 0 and", "return False and"),
        ("bad steps are never forgotten", "        self.bad_in_a_row = 0\n        self.sums", "        self.sums"),
    ),
    *of(
        "train.py", "test_train.py::test_a_step_that_is_not_finite_changes_nothing_and_five_in_a_row_stop_the_run",
        ("a loss that is not finite is used", "if not math.isfinite(means[0]):", "if False:"),
    ),
    *of(
        "train.py", "test_train.py",
        ("every micro-batch counts as a whole one", "loss.backward(share)", "loss.backward()"),
        ("micro-batches count alike", "len(batch.ids) / utterances", "1 / len(parts)"),
        ("all micro-batches drop alike", "*([part] if part else [])", ""),
        ("a stop within an update is not seen", "    raise_if(stop)\n        share", "    pass\n        share"),
    ),
    # --- epochs, and which weights are kept -------------------------------------------------------------------------
    *of(
        "plan.py", "test_wiring.py",
        ("no curriculum", "            curriculum_epochs=self.settings.curriculum_epochs,\n", ""),
        ("every epoch in epoch 0's order", "seed=self.seed, epoch=epoch,", "seed=self.seed, epoch=0,"),
        ("batches ignore the seed", "seed=self.seed, epoch=epoch,", "seed=0, epoch=epoch,"),
    ),
    *of(
        "dry_run.py", "test_dry_run.py",
        ("Adam costs nothing", "self.steps + self.updates + self.dev", "self.steps + self.dev"),
        ("a curriculum costs as much", "plan.work[-1] / plan.flop.sum()  # fewer", "s.epochs  # fewer"),
    ),
    *of("measure_steps.py", "test_measure_steps.py",
        ("the last round counts", "best = np.minimum(best, [timed(work) for work in works])",
         "best = np.array([timed(work) for work in works])"),
        ("nobody teaches", "            add_gradient, student, teacher,", "            add_gradient, student, None,")),
    *of("train.py", "test_progress.py", ("a long warm-up stays long", "plan.warmup", "settings.warmup_steps")),
    *of(
        "train.py", "test_wiring.py",
        ("the dev sample is not asked for", "dev_part.sample(settings.dev_utterances", "dev_part.sample(0"),
        ("the dev set is the training set", "evaluate, model, dev_part", "evaluate, model, train_part"),
        ("greedy on dev ignores max_symbols", "lengths, settings.max_symbols)", "lengths)"),
    ),
    *of(
        "training_state.py", "test_wiring.py",
        ("after a restart the last weights are the best",
         'self.best_values = arrays["best"]', 'self.best_values = arrays["values"].copy()'),
    ),
    *of(
        "training_state.py", "test_train.py::test_the_weights_of_the_best_dev_wer_are_kept",
        ("the latest dev score wins", "[dev_wer, dev_loss] < self.best", "[dev_wer, dev_loss] != self.best"),
        ("the last weights are kept", "self.adam.values[:] = self.best_values", "pass"),
    ),
    *of(
        "train.py", "test_train.py::test_stopped_after_every_step_it_ends_in_the_same_bits",
        ("a resumed epoch starts again", "[state.done_in_epoch :]", "[0:]"),
    ),
    # --- endurance --------------------------------------------------------------------------------------------------
    *of(
        "training_state.py", "test_training_state.py",
        ("one state is kept", ", keep=self.path_before)", ")"),
        ("a full disk ends a training", "except checkpoint.DiskFull as error:", "except ZeroDivisionError as error:"),
    ),
    *of(
        "training_state.py", "test_train.py",
        ("a roll-back keeps the rate", "self._restart_from_best(self.rate / 2)", "self._restart_from_best(self.rate)"),
        ("roll-backs are forgotten at a restart", '"peak_rates", "roll_backs",', '"peak_rates",'),
    ),
    *of(
        "corpus.py", "test_corpus.py",
        ("a curriculum of the longest", '"stable")[:keep]', '"stable")[-keep:]'),
        ("rows are rounded down", "-(-int(num_frames) // reduction)", "int(num_frames) // reduction"),
        ("batches are not shuffled", "[batches[i] for i in rng.permutation(len(batches))]", "list(batches)"),
    ),
    # --- the cascade ------------------------------------------------------------------------------------------------
    *of(
        "prepared_corpus.py", "test_wiring.py",
        ("the vocabulary knows all texts",
         'make_bpe(utterances["train"])', "make_bpe([u for part in utterances.values() for u in part])"),
        ("the normaliser knows all parts",
         'estimate_normaliser([stores["train"]])', "estimate_normaliser(stores.values())"),
        ("models are selected on test-clean",
         "Part.encode(stores[role], bpe,", 'Part.encode(stores["test-clean" if role == "dev" else role], bpe,'),
    ),
    *of(
        "cascade.py", "test_wiring.py",
        ("the first weights ignore the seed",
         'generator(self.seed, model.name, "weights")', 'generator(0, model.name, "weights")'),
        ("the first weights ignore the name",
         'generator(self.seed, model.name, "weights")', 'generator(self.seed, "weights")'),
        ("everybody is taught by T1", "self.folder.load(model.teacher)[0]", 'self.folder.load("T1")[0]'),
    ),
    *of(
        "score_models.py", "test_wiring.py",
        ("SER is WER", "= score.wer, score.ser", "= score.wer, score.wer"),
        ("the beam is not passed", "lengths, settings.beam, ", "lengths, 8, "),
        ("max_symbols is not passed", "beam, settings.max_symbols, 1, stop)", "beam, stop=stop)"),
    ),
    *of(
        "seed_runs.py", "test_wiring.py",
        ("a paired test the wrong way round", "(of[a], of[b])", "(of[b], of[a])"),
    ),
    *of(
        "seed_runs.py", "test_seed_runs.py",
        ("every seed is the first", '"--seed", c.seed,', '"--seed", cascades[0].seed,'),
        ("pooled intervals of one seed", "list(wer.bootstrap_interval(of_seeds, metric))",
         "list(wer.bootstrap_interval(of_seeds[:1], metric))"),
    ),
    *of(
        "cascade.py", "test_seed_runs.py",
        ("training ignores the seed", "path.parent, self.seed, model.name", "path.parent, 0, model.name"),
    ),
    *of(
        "run_folder.py", "test_cascade.py::test_results_hold_what_the_tables_need",
        ("compression is what is left", '1 - m["params"] / size["T1"]', 'm["params"] / size["T1"]'),
    ),
    *of(
        "scales.py", "test_scales.py",
        ("the progressive student is a direct one",
         'Stage("61", "S1", "S3", "S2", "B2")', 'Stage("61", "T1", "S3", "S2", "B2")'),
        ("spec_augment() forgets the warp",
         "dataclasses.fields(SpecAugmentPolicy))", "dataclasses.fields(SpecAugmentPolicy)[:-1])"),
    ),
    # --- SpecAugment ------------------------------------------------------------------------------------------------
    *of(
        "specaugment.py", "test_specaugment.py",
        ("the warp extrapolates", "source.astype(np.int64)", "source.astype(np.int64) // 2 * 2"),
        ("a time mask of any width", "int(policy.max_time_fraction * T)", "T"),
        ("channels are masked as rows",
         "log_mel[:, f : f + width] = mean[f : f + width]", "log_mel[f : f + width] = mean"),
        ("a hidden band is silence", "= mean[f : f + width]", "= 0"),
        ("mels are stretched from the first channel, not from 0",
         "np.arange(1, F + 1) / factor - 1", "np.arange(F) / factor"),
        ("the noise passes the channel twice",
         "energies += noise_floor(energies", "energies = energies * smooth_curve(rng, 9.0) + noise_floor(energies"),
        ("the rotation forgets the mean", "rows * normaliser.std + normaliser.mean", "rows * normaliser.std"),
        ("noise that does not fluctuate", "rng.standard_gamma(INDEPENDENT, energies.shape) / INDEPENDENT", "1.0"),
    ),
    # --- distillation -----------------------------------------------------------------------------------------------
    *of(
        "lattice_kl.py", "test_lattice_kl.py",
        ("alpha only in the value", "temperature, alpha / B", "temperature, 1 / B"),
        ("kl_weighting is not passed on", "alpha / B, kl_weighting,", 'alpha / B, "nodes",'),
        ("convex is add", '1.0 if mixing == "add" else 1.0 - alpha', "1.0"),
        ("a mean over the lattice", "+ alpha * kl).mean()", "+ alpha * kl / lengths).mean()"),
    ),
    *of(
        "lattice_kernels.py", "test_lattice_kl.py",
        ("KL from the student to the teacher",
         "cross += e_teacher * (x_teacher - x)\n                row[k] = e\n",
         "cross += e * (x - x_teacher)\n                row[k] = e\n"),
        ("the KL's gradient uphill", "c * (P - teacher_row[k] * p_teacher)", "c * (teacher_row[k] * p_teacher - P)"),
        ("a temperature without its 1 / tau",
         "p, p_teacher = scale / Z, scale / teacher_Z", "p, p_teacher = one / Z, one / teacher_Z"),
        ("collapsed without the rest", " + t_rest_p * (t_rest - s_rest)", ""),
        ("occupancies weight the loss but not its gradient",
         "flush(row.dtype.type(at_blank + at_label)), flush(row.dtype.type(kl_weight * node_weight[n]))\n\n",
         "flush(row.dtype.type(at_blank + at_label)), flush(row.dtype.type(kl_weight))\n\n"),
        ("occupancies weight the gradient but not the loss",
         "kl[n] = node_weight[n] * divergence\n        subtract_steps", "kl[n] = divergence\n        subtract_steps"),
    ),
    *of(
        "lattice_walk.py", "test_lattice_walk.py",
        ("along paths the teacher is asked everywhere",
         "rows_of_nodes(weight[at], negligible, stands)",
         "rows_of_nodes(weight[at] if teacher is None else np.ones(chunk.size), negligible, stands)"),
    ),
    # --- RNN-T ------------------------------------------------------------------------------------------------------
    *of(
        "lattice_kernels.py", "test_rnnt_loss.py",
        ("the last blank is free",
         "        beta[-1] += blank[t, -1]\n", "        if t < T - 1:\n            beta[-1] += blank[t, -1]\n"),
        ("one way into a node", "here[u + 1] += out", "here[u + 1] = out"),
        ("a softmax that labels do not push down",
         "at, shift = row.dtype.type(at_blank + at_label)", "at, shift = row.dtype.type(at_blank)"),
    ),
    *of(
        "rnnt_loss.py", "test_rnnt_loss.py",
        ("a gradient of the sum", "wants_gradients(inputs), 1 / len(lengths)", "wants_gradients(inputs), 1.0"),
    ),
    # --- the model --------------------------------------------------------------------------------------------------
    *of(
        "transducer.py", "test_transducer.py::test_the_gradient_of_the_table_is_the_sum_of_both_uses",
        ("the output matrix sends the table no gradient",
         "return self.predictor.embedding.table\n", "return Tensor(self.predictor.embedding.table.data)\n"),
    ),
    *of(
        "ops.py", "test_ops.py",
        ("repeated labels teach the embedding once", "np.add.at(gradient, ids, g)", "gradient[ids] += g"),
    ),
    *of(
        "predictor.py", "test_predictor.py",
        ("a label where the start symbol belongs",
         "row_starts(label_lengths), BLANK)", "row_starts(label_lengths), BLANK + 1)"),
    ),
    *of(
        "attention_kernel.py", "test_attention.py",
        ("attention looks a row ahead",
         "at, at_q, at_k = MARGIN + t0 - lo, MARGIN + t0, MARGIN + past + t0 - i - 3",
         "at, at_q, at_k = MARGIN + t0 - lo, MARGIN + t0, MARGIN + past + t0 - i - 2"),
        ("attention of sharper heads",
         "shrink, zero, one = qkv.dtype.type(1.0 / np.sqrt(C))", "shrink, zero, one = qkv.dtype.type(1.0)"),
    ),
    *of(
        "convolution_kernel.py", "test_convolution.py",
        ("convolution looks a row ahead", "newest = row_of[n]", "newest = min(row_of[n] + 1, len(x) - 1)"),
        ("convolution hears the utterance before",
         "max(0, first_of[n] - newest + K - 1)", "max(0, K - 1 - newest)"),
    ),
    *of(
        "convolution.py", "test_convolution.py",
        ("pools reach into the next utterance",
         "left + 1 < np.repeat(row_starts(lengths) + lengths, halves)", "left + 1 < len(x.data)"),
    ),
    *of(
        "lstm.py", "test_lstm.py",
        ("the LSTM goes on from the utterance before",
         "        before[row_starts(lengths)[lengths > 0]] = 0\n", "        before[:1] = 0\n"),
    ),
    *of(
        "conformer.py", "test_conformer.py",
        ("the first block drops", "NO_DROPOUT if i == 0 else dropout", "dropout"),
    ),
    *of(
        "fused.py", "test_fused.py",
        ("dropout does not scale up", "x.dtype.type(factor / (1.0 - rate)), x.dtype", "x.dtype.type(factor), x.dtype"),
    ),
    *of(
        "fused.py", "test_fused.py::test_layer_norm_adds_what_others_have_sent",
        ("layer norm forgets what is pending", "if pending is not None:", "if pending is not None and N < 0:"),
    ),
    # --- Adam -------------------------------------------------------------------------------------------------------
    *of(
        "optimizer.py", "test_optimizer.py",
        ("Adam without its bias correction", "1 - BETA1**self.steps, 1 - BETA2**self.steps", "1.0, 1.0"),
        ("every gradient has the clip's norm", "min(1.0, clip / norm)", "clip / norm"),
        ("a rate that does not fall to its floor", "math.cos(math.pi * progress)", "math.cos(progress)"),
    ),
    # --- decoding, scoring, reporting -------------------------------------------------------------------------------
    *of(
        "fast_beam.py", "test_fast_beam.py",
        ("the beam keeps the better path of two",
         "finished_score[b, j] = log_add(finished_score[b, j], done)",
         "finished_score[b, j] = max(finished_score[b, j], done)"),
        ("a cutoff at the best score",
         "best_first(finished_score[b, :count], beam)[beam - 1]", "best_first(finished_score[b, :count], beam)[0]"),
    ),
    *of(
        "decode.py", "test_decode.py",
        ("greedy says one symbol more", "(said[live] >= max_symbols)", "(said[live] > max_symbols)"),
    ),
    *of(
        "wer.py", "test_wer.py",
        ("WER is averaged over utterances",
         "float(_rate(self.edits.sum(), self.words.sum()))", "float(_rate(self.errors, self.words).mean())"),
        ("one error is none for SER", "(self.errors > 0)", "(self.errors > 1)"),
        ("p without ties", "sums[:, 0] <= sums[:, 1]", "sums[:, 0] < sums[:, 1]"),
    ),
    *of(
        "resampling.py", "test_wer.py",
        ("all seeds, none drawn", "times[piece, s] * counts", "counts"),
    ),
    *of(
        "findings.py", "test_findings.py",
        ("the report reads a test from the wrong side", "(-difference, -high, -low, p,", "(difference, low, high, p,"),
        ("an interval that begins below zero is enough",
         "sum(high < 0 for _, _, high, *_ in here)", "sum(low < 0 for _, low, *_ in here)"),
    ),
]  # fmt: skip


def fault(mutant, root=ROOT):
    """Why this mutant does not fit the code any more, or None."""
    path = root / "mini_pkd" / mutant.file
    times = path.read_text(encoding="utf-8").count(mutant.old) if path.exists() else 0
    if times != 1:
        return f"{mutant.name}: {mutant.old!r} stands in mini_pkd/{mutant.file} {times} times, not once"
    for name in mutant.tests.split():
        file, _, test = name.partition("::")
        path = root / "tests" / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            return f"{mutant.name}: there is no tests/{name}"
    return None


# --- running them --------------------------------------------------------------------------------------------------


def copy(source, target):
    """What tests need, compiled kernels included: numba's cache goes by file and time, which the copies keep."""
    for name in ("mini_pkd", "tests", "pyproject.toml"):
        part = source / name
        copy_one = shutil.copytree if part.is_dir() else shutil.copy2
        copy_one(part, target / name)
    (target / "data_small").symlink_to(ROOT / "data_small")


class Runner:
    """Runs pytest in folders, and ends what it has started."""

    def __init__(self):
        self.running = set()

    def pytest(self, folder, tests, seconds):
        """-> (exit status or None after `seconds`, output)"""
        environment = os.environ | {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": ""}  # the cache beside the code
        paths = [f"tests/{name}" for name in tests]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths], cwd=folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self.running.add(process)
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            self.end(process)
            self.running.discard(process)

    def end(self, process):
        """Kill it with all that its tests have started: a process group of its own."""
        with contextlib.suppress(OSError):  # they are gone
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self):
        for process in list(self.running):
            self.end(process)

    def verdict(self, mutant, clean, seconds):
        """-> (word, seconds, output): whether the tests of this mutant notice it."""
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            copy(clean, Path(folder))
            path = Path(folder) / "mini_pkd" / mutant.file
            path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
            status, output = self.pytest(folder, mutant.tests.split(), seconds)
        if status is None:
            word = "killed by time-out"
        elif status == 1 or status < 0:  # a test failed, or the process crashed
            word = "killed"
        else:  # 2 to 5: not even collected, so this is no mutant but a typing error
            word = "SURVIVED" if status == 0 else "BROKEN"
        return word, time.monotonic() - start, output


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python tests/mutants.py", description="Do the tests notice wrong changes?")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="mutants whose name, or file, holds one of these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants that are tested side by side")
    parser.add_argument("--seconds", type=float, default=300, metavar="S", help="then a mutant counts as hung (300)")
    parser.add_argument("--list", action="store_true", help="print their names, and stop")
    options = parser.parse_args(argv)
    words = options.only or [""]
    chosen = [m for m in MUTANTS if any(word in m.name or word == m.file for word in words)]
    if options.list:
        print("\n".join(f"{m.file:16s} {m.name}" for m in chosen))
        return 0
    faults = [sentence for sentence in map(fault, chosen) if sentence]
    if faults or not chosen or options.jobs < 1:
        print("\n".join(faults) or "no mutant has such a name, or --jobs is below 1; --list prints the names.")
        return 2

    runner, count = Runner(), {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        clean = Path(folder)
        copy(ROOT, clean)
        tests = sorted({name for m in chosen for name in m.tests.split()})
        print(f"{len(chosen)} mutants; first {len(tests)} tests or files of tests without any, which must pass ...")
        try:
            status, output = runner.pytest(clean, tests, None)  # and numba compiles what it has not yet compiled
            if status != 0:
                print(output[-4000:], "\nthe tests fail without a mutant: mend that first.")
                return 2
            with (
                concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
                tqdm(total=len(chosen), unit="mutant", dynamic_ncols=True) as bar,
            ):
                try:
                    tasks = {pool.submit(runner.verdict, m, clean, options.seconds): m for m in chosen}
                    for task in concurrent.futures.as_completed(tasks):
                        word, seconds, output = task.result()
                        count[word] = count.get(word, 0) + 1
                        by = re.search(r"^(?:FAILED|ERROR) \S+::(\w+)", output, re.MULTILINE)
                        noticed = f"  <- {by[1]}" if by else ""
                        bar.write(f"{word:18s} {seconds:6.1f} s  {tasks[task].file:16s} {tasks[task].name}{noticed}")
                        if word == "BROKEN":
                            bar.write(output[-2000:])
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    runner.stop()
                    raise
        except KeyboardInterrupt:
            print("\nstopped.")
            return 130
    print(", ".join(f"{number} {word}" for word, number in sorted(count.items())))
    return 1 if {"SURVIVED", "BROKEN"} & count.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
