"""seeds.py: a generator is a function of its keys, in every process."""

import subprocess
import sys

import numpy as np
import pytest

from mini_pkd.seeds import generator


def test_generators_are_distinct_for_distinct_keys():
    numbers = [(0,), (1,), (0, 0), (0, 0, 0), (1, 0), (1, 23), (12, 3), (123,), (-1,), (2**40,)]
    words = [(0, "0"), (0, ""), (0, "a", "b"), (0, "ab"), (0, "a;s1:b"), (0, "a", "b", 0), (0, "é")]
    keys = numbers + words
    draws = {generator(*key).integers(2**62) for key in keys}
    assert len(draws) == len(keys)


def test_numpy_integers_count_as_integers_and_others_are_refused():
    assert generator(np.int64(3), np.int32(4)).random() == generator(3, 4).random()
    with pytest.raises(TypeError, match="float"):
        generator(0, 0.5)


def test_generator_is_the_same_in_another_process():
    code = "from mini_pkd.seeds import generator; print(generator(7, 'S1', 3, 'utt-1').integers(2**62))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == generator(7, "S1", 3, "utt-1").integers(2**62)
