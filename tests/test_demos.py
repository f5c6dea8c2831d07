"""Every demo prints, in the process of the tests, what its reader is told to check."""

import importlib
from pathlib import Path

import pytest

import mini_pkd

CHECKED = [
    ("tensor", "d/dx = y @ w^T = [[2.0, 1.0]]"),
    ("gradcheck", "softmax, gradient 0, random cotangent:  disagreement 1.0e+00"),
    ("ops", "[0.731 1.762 2.858]"),
    ("layers", "numbers in all: 22"),
    ("optimizer", "step   1: gradient norm 6.000, w = 0.0050"),
    ("fused", "largest relative difference of the two:"),
    ("simd", "below a tenth of 2^32: 0.100"),
    ("ragged", "starting at nodes [0 6], 8 in all"),
    ("seeds", "generator(0, 'masks', 3) draws 330\ngenerator(0, 'masks', 3) draws 330\n"),
    ("features", "c0 rises by 17.54, and sqrt(40) ln 16 = 17.54"),
    ("specaugment", "mel axis x 1.1: 11, 22, 33              2222222346864322223468643222234686432222"),
    ("bpe", "decode SHE SHARES SEASHELLS"),
    ("corpus", "train: 1600 utterances, 0 problems"),
    ("feature_store", "7449 rows of 40 float32: 1191840 bytes"),
    ("checkpoint", "foreign.npz is not a mini_pkd checkpoint"),
    ("model_file", "T1 comes back with the same weights: True"),
    ("attention", "[ 1.   1.5  2.  10.  15. ]"),
    ("attention", "[0.333 0.333 0.333]"),
    ("convolution", "[ 2.5  5.5  8.5 20.5 50.5]"),
    ("convolution", "max of pairs: [ 2.  3. 20.]"),
    ("lstm", "[0.2311 0.3176 0.352  0.2311 0.3176]"),
    ("conformer", "100 rows of 10 ms -> 13 rows of 80 ms"),
    ("conformer", "the first output row that moves is 6 (50 // 8)"),
    ("predictor", "become inputs [0 3 1 0 0 2]"),
    ("transducer", "table                    720 parameters\npredictor               3600 parameters"),
    ("transducer", "50 feature rows -> 7 rows"),
    ("rnnt_loss", "alpha and beta  4.495667\n  all 3 paths     4.495667"),
    ("lattice_kl", "0.173287 = 0.173287"),
    ("lattice_kl", "0.173287, 0.130812"),
    ("lattice_kl", "0.392436 = 3 x 0.130812, along a path 0.261624"),
    ("decode", "P(a) = 0.4 + 0.3 x 0.1 = 0.43     P(b) = 0.3 + 0.3 x 0.9 = 0.57"),
    ("decode", "merged from 0.30 with 0 said in row 1 and 0.27 with 1 said in row 1"),
    ("fast_beam", "readable:  P(b) = 0.57   P(a) = 0.43\nfast:      P(b) = 0.57   P(a) = 0.43"),
    ("wer", "u2: ONE/ONE  -/TWO  TWO/TWO  THREE/THREE    Edits(substitutions=0, deletions=0, insertions=1)"),
    ("wer", "+20.00 points, 95 % interval +0.00 to +50.00, p = 0.5867"),
    ("scales", "  T1   127.732 M  taught by -\n  S1    78.983 M  taught by T1"),
    ("train", "WER 0.00"),
    ("train", "said: RED GREEN BLUE   understood: RED GREEN BLUE"),
]
NOT_HERE = {"threads": "it is a benchmark, and ends the pool of threads of its process"}


def test_no_demo_is_forgotten():
    demos = {p.stem for p in Path(mini_pkd.__file__).parent.glob("*.py") if "\ndef demo(" in p.read_text("utf-8")}
    assert demos == {name for name, _ in CHECKED} | NOT_HERE.keys()


@pytest.mark.parametrize("name, expected", CHECKED)
def test_demo(name, expected, capsys):
    importlib.import_module(f"mini_pkd.{name}").demo()
    assert expected in capsys.readouterr().out
