"""`check` says at once whether an answer is right, and if not, where to look."""

import numpy as np

UNANSWERED = "Not answered yet"  # build.py fails when a notebook with its solutions prints this


class Wrong(AssertionError):
    """An answer that is not right.  A notebook shows its sentence alone, without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def check(answer, expected, hint, tolerance=1e-6):
    """Print "Right" or raise Wrong with the hint.

    answer     what the learner found; `...`, the blank, or a function that returns it: not answered yet, no error
    expected   a function that says whether it is right, or a value: numbers agree within `tolerance` of it (0 for
               exactly), arrays within that of their largest number, everything else must be equal
    hint       one or two sentences: how to find the mistake

    >>> check(2 + 2, 4, "Count again.")
    Right: 4
    >>> check(..., 4, "Count again.")
    Not answered yet. Put your answer in the place of the dots.
    """
    try:
        answer = _answered(answer)
        right = expected(answer) if callable(expected) else _agree(answer, expected, tolerance)
    except Blank:
        print(f"{UNANSWERED}. Put your answer in the place of the dots.")
        return
    except Exception as error:  # whatever a learner's function raises is an answer too
        raise Wrong(f"Not right yet: it ends in {type(error).__name__}: {error}. Hint: {hint}") from None
    if not right:
        raise Wrong(f"Not right yet{_shown(answer, ': ')}. Hint: {hint}")
    print(f"Right{_shown(answer, ': ')}")


class Blank(Exception):
    """The answer is still `...`."""


def _answered(answer):
    """An answer as it is, unless it is a blank; a function is asked again whenever it is called."""
    if answer is ...:
        raise Blank
    if callable(answer):
        return lambda *arguments, **named: _answered(answer(*arguments, **named))
    return answer


def _agree(answer, expected, tolerance):
    if isinstance(expected, (str, bytes, list, tuple, dict, set, bool, type(None))):
        return answer == expected
    answer, expected = np.asarray(answer, dtype=float), np.asarray(expected, dtype=float)
    if answer.shape != expected.shape:
        return False
    return np.abs(answer - expected).max(initial=0) <= tolerance * np.abs(expected).max(initial=0) + 1e-12


def _shown(answer, before):
    """A short answer, to be read beside the verdict; nothing for functions and large arrays."""
    if callable(answer) or np.size(answer) > 8:
        return ""
    return before + (f"{answer:.6g}" if isinstance(answer, (float, np.floating)) else str(answer))
