"""scales.py: the paper's sizes, the order of the cascade, and settings changed by name."""

import dataclasses
import json

import numpy as np
import pytest

from mini_pkd import UserError, transcribe
from mini_pkd.scales import (
    FULL,
    MEDIUM,
    SCALES,
    SMALL,
    TINY,
    count_parameters,
    get_scale,
)
from mini_pkd.specaugment import SpecAugmentPolicy
from mini_pkd.transducer import Transducer

# DESIGN section 1: model -> (size in millions, teacher, role, experiment, stage)
TABLE_1 = {
    "T1": (128, None, "teacher", (1, 2), 0),
    "S1": (79, "T1", "progressive", (1,), 1),
    "B1": (79, None, "baseline", (1,), 1),
    "S2": (61, "T1", "direct", (1,), 2),
    "S3": (61, "S1", "progressive", (1,), 2),
    "B2": (61, None, "baseline", (1,), 2),
    "S4": (46, "T1", "direct", (1,), 3),
    "S5": (46, "S3", "progressive", (1,), 3),
    "B3": (46, None, "baseline", (1,), 3),
    "S6": (58, "T1", "progressive", (2,), 1),
    "B4": (58, None, "baseline", (2,), 1),
    "S7": (24, "T1", "direct", (2,), 2),
    "S8": (24, "S6", "progressive", (2,), 2),
    "B5": (24, None, "baseline", (2,), 2),
}


def parameters(scale, size):
    return count_parameters(scale.sizes[size].config(scale.settings.vocab_size))


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, millions", [("T1", 128), ("79", 79), ("61", 61), ("46", 46), ("58", 58), ("24", 24)])
def test_sizes_of_full_are_the_papers(size, millions):
    assert parameters(MEDIUM, size) / 10e6 == pytest.approx(millions / 128, rel=0.01)
    assert round(parameters(FULL, size) / 1e6) == millions
    assert abs(parameters(SMALL, size) / 1e6 - millions / 100) < 0.01  # the paper at 1 : 100


@pytest.mark.parametrize("size, compression", [("79", 0.38), ("61", 0.52), ("46", 0.64), ("58", 0.55), ("24", 0.81)])
def test_compressions_are_the_papers(size, compression):
    for scale in (FULL, MEDIUM, SMALL):
        assert abs(1 - parameters(scale, size) / parameters(scale, "T1") - compression) < 0.01


@pytest.mark.parametrize("name, size", [(s.name, size) for s in (TINY, SMALL, MEDIUM) for size in s.sizes])
def test_counting_equals_building(name, size):
    scale = SCALES[name]
    config = scale.sizes[size].config(scale.settings.vocab_size)
    assert Transducer(config, np.random.default_rng(0)).num_parameters() == count_parameters(config)


def test_counting_equals_building_for_odd_sizes():
    size = dataclasses.replace(
        TINY.sizes["T1"], blocks=3, width=12, heads=3, expansion=3, window=5, kernel=2, lstm_layers=3, lstm_width=7
    )
    config = size.config(11)
    assert Transducer(config, np.random.default_rng(0)).num_parameters() == count_parameters(config)


def test_the_papers_teacher():
    """What the paper says of T1: 16 blocks, width 512, 4 heads, LSTM 2 x 1024, 10026 units, an 80 ms row."""
    config = FULL.sizes["T1"].config(FULL.settings.vocab_size)
    assert (config.encoder.blocks, config.encoder.width, config.encoder.heads) == (16, 512, 4)
    assert (config.lstm_layers, config.lstm_width, config.joint_width, config.symbols) == (2, 1024, 1024, 10026)
    assert config.encoder.reduction == 8 and config.encoder.features == 40
    settings = FULL.settings
    assert (settings.alpha, settings.temperature, settings.dropout, settings.beam) == (0.02, 1.0, 0.1, 8)
    assert settings.peak_rate == 1e-4


def test_students_shrink():
    for scale in SCALES.values():
        sizes = [parameters(scale, size) for size in scale.sizes]
        for stages in scale.experiments:
            chain = [parameters(scale, "T1"), *(parameters(scale, stage.size) for stage in stages)]
            assert all(a > b for a, b in zip(chain, chain[1:], strict=False))
        assert max(sizes) == parameters(scale, "T1")


# --- the cascade ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [SMALL, MEDIUM, FULL], ids=["small", "medium", "full"])
def test_the_fourteen_models_of_table_1(scale):
    models = {m.name: m for m in scale.models()}
    assert len(scale.models()) == len(models) == 14
    sizes = {name: "T1" if name == "T1" else str(row[0]) for name, row in TABLE_1.items()}
    for name, (_, teacher, role, experiment, stage) in TABLE_1.items():
        m = models[name]
        assert (m.size, m.teacher, m.role, m.experiment, m.stage) == (sizes[name], teacher, role, experiment, stage)


def test_the_experiments_of_table_1():
    """Both columns of a first stage name the same model: what T1 teaches directly is the progressive student."""
    rows = [[(s.size, s.teacher, s.progressive, s.direct, s.baseline) for s in stages] for stages in SMALL.experiments]
    assert rows == [
        [("79", "T1", "S1", "S1", "B1"), ("61", "S1", "S3", "S2", "B2"), ("46", "S3", "S5", "S4", "B3")],
        [("58", "T1", "S6", "S6", "B4"), ("24", "S6", "S8", "S7", "B5")],
    ]
    assert FULL.experiments == SMALL.experiments


def test_tiny_has_a_two_stage_cascade():
    models = {m.name: m for m in TINY.models()}
    assert list(models) == ["T1", "S1", "B1", "S2", "S3", "B2"]
    assert (models["S3"].teacher, models["S2"].teacher, models["B2"].teacher) == ("S1", "T1", None)
    assert models["T1"].experiment == (1,)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_teachers_come_before_their_students_and_every_size_exists(scale):
    seen = set()
    for model in scale.models():
        assert model.name not in seen and model.size in scale.sizes
        assert model.teacher is None or model.teacher in seen
        assert (model.teacher is None) == (model.role in ("teacher", "baseline"))
        seen.add(model.name)
    assert {m.size for m in scale.models()} == set(scale.sizes)  # no size that nobody trains


def test_decoding_from_the_command_line_bounds_symbols_as_the_cascade_does():
    assert {scale.settings.max_symbols for scale in SCALES.values()} == {transcribe.MAX_SYMBOLS}


def test_every_number_of_specaugment_reaches_its_policy():
    policy = SpecAugmentPolicy(
        time_masks=3,
        max_time=5,
        max_time_fraction=0.25,
        freq_masks=4,
        max_freq=7,
        max_warp_fraction=0.125,
        max_mel_warp=0.0625,
        max_channel_db=3.0,
        max_noise=0.5,
    )
    values = dataclasses.asdict(policy)
    assert all(values[f.name] != f.default for f in dataclasses.fields(SpecAugmentPolicy))
    assert all(values[name] != getattr(TINY.settings, name) for name in values)
    assert dataclasses.replace(TINY.settings, **values).spec_augment() == policy


# --- by name --------------------------------------------------------------------------------------


def test_get_scale():
    assert [get_scale(name).name for name in SCALES] == ["tiny", "small", "medium", "full"]
    with pytest.raises(UserError, match="there is no scale 'smal'; the nearest known name is 'small'"):
        get_scale("smal")
    with pytest.raises(UserError, match="known are tiny, small, medium, full"):
        get_scale("xqz")


def test_a_scale_survives_json():
    for scale in SCALES.values():
        assert json.loads(json.dumps(scale.as_dict()))["settings"]["epochs"] == scale.settings.epochs
