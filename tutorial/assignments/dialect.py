"""A class's dialect: conventions drawn from a key, so that code copied from the package fails.

Where is the blank, which axis comes first, who wins a tie: a transducer works either way, and each assignment names
such conventions, each with two choices or more.  The first choice is the package's own.  A choice is a few words:

    CONVENTIONS = {
        "blank": {
            "first": {"blank": "0", "where blank is": "symbol 0"},
            "last": {"blank": "-1", "where blank is": "the last symbol, V - 1"},
        },
    }

All texts of an assignment, code as well as handout, hold «blank» or «where blank is» where such a word belongs, and
`Dialect.render` puts it there.  So stub, solution, mutants, tests and handout cannot disagree.
"""

import hashlib
import re
import textwrap

import numpy as np

MARKER = re.compile(r"«([^«»\n]+)»")
ALONE = re.compile(r"^([ \t]*)«([^«»\n]+)»[ \t]*(?:\n|\Z)", flags=re.MULTILINE)


def generator(*words):
    """numpy's generator for this purpose and no other: words are hashed, numpy's own hash is not cryptographic."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class Dialect:
    """One choice for each convention.

    >>> conventions = {"blank": {"first": {"blank": "0"}, "last": {"blank": "-1"}}}
    >>> dialect = Dialect(conventions, {"blank": "last"})
    >>> dialect["blank"], dialect.render("log_probs[t, u, «blank»]")
    ('last', 'log_probs[t, u, -1]')
    """

    def __init__(self, conventions, choices=None):
        """choices {convention: name of the choice}; a convention that is not named keeps the package's choice."""
        self.choices = {name: (choices or {}).get(name, next(iter(options))) for name, options in conventions.items()}
        self.words = {}
        for name, options in conventions.items():
            self.words.update(options[self.choices[name]])

    def __getitem__(self, convention):
        return self.choices[convention]

    def render(self, text):
        """The text with its markers replaced.

        A marker that has a line for itself is replaced by any number of lines, indented like it, also by none.
        KeyError for a marker that no convention knows.
        """
        text = ALONE.sub(
            lambda found: (
                textwrap.indent(self.words[found[2]].rstrip("\n") + "\n", found[1]).lstrip("\n")
                if self.words[found[2]].strip()
                else ""
            ),
            text,
        )
        return MARKER.sub(lambda found: self.words[found[1]], text)

    def __str__(self):
        return ", ".join(f"{name}: {choice}" for name, choice in self.choices.items())


def draw(assignment, key):
    """The dialect of a class; without a key, the package's own conventions.

    Drawn again until every task that knows a convention differs from the package.
    """
    plain = Dialect(assignment.conventions)
    if not key:
        return plain
    rng = generator("dialect", assignment.name, key)
    tasks = [task for task in assignment.tasks if MARKER.search(task.code)]
    while True:
        choices = {name: list(options)[rng.integers(len(options))] for name, options in assignment.conventions.items()}
        dialect = Dialect(assignment.conventions, choices)
        if all(dialect.render(task.code) != plain.render(task.code) for task in tasks):
            return dialect
