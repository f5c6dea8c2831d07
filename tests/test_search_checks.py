"""What every search refuses, in one sentence."""

import numpy as np
import pytest

from mini_pkd import UserError
from mini_pkd.search_checks import check_inputs, check_numbers

ENC = np.zeros((5, 3))


def test_lengths_that_count_every_row_pass_as_int64():
    lengths = check_inputs(ENC, np.int32([3, 0, 2]), 12)
    assert lengths.tolist() == [3, 0, 2] and lengths.dtype == np.int64
    assert check_inputs(ENC[:0], [], 12).tolist() == []


@pytest.mark.parametrize("lengths", [[3], [3, 3], [6, -1], [[3, 2]], []])
def test_lengths_that_do_not(lengths):
    with pytest.raises(UserError, match="where there are 5 encoder rows; give one length per utterance") as caught:
        check_inputs(ENC, lengths, 12)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -3, 1.5, True])
def test_numbers_below_one_and_parts_of_one(value):
    check_numbers(beam=1, n_best=np.int64(3))
    with pytest.raises(UserError, match=f"beam is {value}; give a whole number of at least 1"):
        check_numbers(beam=value)
    with pytest.raises(UserError, match=f"max_symbols is {value}"):
        check_inputs(ENC, [5], value)
