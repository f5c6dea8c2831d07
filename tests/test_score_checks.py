"""What scoring refuses, with the utterances named."""

import pytest

from mini_pkd import UserError
from mini_pkd.score_checks import check_metric, check_pair, check_texts
from mini_pkd.wer import score

TEXTS = {f"u{i}": "A B" for i in range(8)}


def test_texts_that_belong_together_pass():
    check_texts(TEXTS, dict.fromkeys(TEXTS, ""))
    check_pair(score(TEXTS, TEXTS), score(TEXTS, dict.fromkeys(TEXTS, "A")))
    check_metric("wer")
    check_metric("ser")


def test_what_is_missing_is_named_and_many_are_counted():
    with pytest.raises(UserError, match="no hypothesis for u0, u1, u2, u3, u4 and 3 more utterances;"):
        check_texts(TEXTS, {})
    with pytest.raises(UserError, match="no reference for v;"):
        check_texts(TEXTS, TEXTS | {"v": "A"})
    with pytest.raises(UserError, match="no utterances to score"):
        check_texts({}, {})


def test_pairs_of_other_utterances_or_references_and_unknown_metrics():
    whole, less = score(TEXTS, TEXTS), score({"u0": "A B"}, {"u0": "A B"})
    with pytest.raises(UserError, match="only one side has u1, u2, u3, u4, u5 and 2 more"):
        check_pair(whole, less)
    with pytest.raises(UserError, match="the references differ in u0;"):
        check_pair(less, score({"u0": "A"}, {"u0": "A"}))
    with pytest.raises(UserError, match="no metric 'cer'; take 'wer' or 'ser'"):
        check_metric("cer")
