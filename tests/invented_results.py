"""Invented results for the tests of the report: numbers that a reader can compute in the head."""

import json

from mini_pkd.scales import SMALL

SETS = ["test-clean", "test-other"]


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
            for a, b in ((stage.progressive, stage.baseline), (stage.progressive, "T1")):
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
    }


def write(folder, results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def row_of(rows, model):
    (row,) = [r for r in rows if model in r[:2]]
    return row
