"""Invented results for the tests of the report: numbers that a reader can compute in the head."""

import dataclasses
import json

from mini_pkd.scales import EXPERIMENT_1, SMALL, TINY

SETS = ["test-clean", "test-other"]
TWO_STAGES, THREE_STAGES = (dataclasses.replace(TINY, experiments=(EXPERIMENT_1[:n],)) for n in (2, 3))


def make_results(scale=SMALL, seed=0, drop=(), paired=True):
    """Invented results in the cascade's format.  WER of model i on clean: 8 % + i/2 % + seed/4 %; other: double."""
    params = {"T1": 1_280_000, "79": 790_000, "61": 610_000, "46": 460_000, "58": 580_000, "24": 240_000}
    models = []
    for i, model in enumerate(scale.models()):
        if model.name in drop:
            continue
        wer = 0.08 + 0.005 * i + 0.0025 * seed
        models.append(
            {
                "name": model.name,
                "role": model.role,
                "experiment": list(model.experiment),
                "stage": model.stage,
                "teacher": model.teacher,
                "params": params[model.size],
                "compression": 1 - params[model.size] / params["T1"],
                "wer": {"test-clean": wer, "test-other": 2 * wer},
                "ser": {"test-clean": 3 * wer, "test-other": 4 * wer},
                "wer_ci95": {"test-clean": [wer - 0.01, wer + 0.011], "test-other": [2 * wer - 0.02, 2 * wer + 0.02]},
                "seconds": 61.0,
                "updates": 1234,
                "best_dev_wer": wer + 0.001,
            }
        )
    rates = {m["name"]: m["wer"] for m in models}
    tests = []
    for stages in scale.experiments:
        for stage in stages:
            for a, b in ((stage.progressive, stage.baseline), (stage.progressive, "T1"), (stage.baseline, "T1")):
                for s in SETS:
                    if a in rates and b in rates:
                        d = rates[a][s] - rates[b][s]
                        test = {"a": a, "b": b, "set": s, "difference": d, "low": d - 0.008, "high": d + 0.008}
                        tests.append({**test, "p": 0.0312})
    return {
        "scale": scale.name,
        "seed": seed,
        "command": f"python -m mini_pkd.cascade --scale {scale.name} --seed {seed}",
        "machine": "2 cores",
        "seconds": 512.3,
        "test_sets": SETS,
        "experiments": [
            {
                "number": n,
                "stages": [
                    {
                        "stage": i,
                        "teacher": stage.teacher,
                        "progressive": stage.progressive,
                        "direct": stage.direct,
                        "baseline": stage.baseline,
                    }
                    for i, stage in enumerate(stages, start=1)
                ],
            }
            for n, stages in enumerate(scale.experiments, start=1)
        ],
        "models": models,
        "paired": tests if paired else [],
        "speakers": [
            {
                "set": "test-other",
                "speaker": name,
                "words": 100 + i,
                "wer": {m: rate["test-other"] + i / 100 for m, rate in rates.items()},
            }
            for i, name in enumerate(("kal", "pico|1"))
        ],
    }


def make_pooled(scale=SMALL, seeds=(0, 1, 4), **options):
    """... and as the cascade pools them: means, intervals of 2 and 3 points, differences that seeds repeat."""
    runs = [make_results(scale, seed, **options) for seed in seeds]
    models, paired = [], []
    for same in zip(*(run["models"] for run in runs), strict=True):
        wer = {s: sum(m["wer"][s] for m in same) / len(same) for s in SETS}
        ci = {"test-clean": [wer["test-clean"] - 0.02, wer["test-clean"] + 0.03],
              "test-other": [wer["test-other"] - 0.03, wer["test-other"] + 0.03]}  # fmt: skip
        models.append({**same[0], "wer": wer, "wer_ci95": ci, "ser_ci95": ci, "seeds": list(seeds)})
    for same in zip(*(run["paired"] for run in runs), strict=True):
        d = sum(t["difference"] for t in same) / len(same)
        test = {**same[0], "difference": d, "low": d - 0.009, "high": d + 0.009, "relative": [0.1, -0.05, 0.25]}
        paired.append({**test, "differences": {str(s): t["difference"] for s, t in zip(seeds, same, strict=True)}})
    return {"scale": scale.name, "seeds": list(seeds), "models": models, "paired": paired, "runs": runs}


def write(folder, results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def row_of(rows, model):
    (row,) = [r for r in rows if model in r[:2]]
    return row
