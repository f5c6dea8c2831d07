"""mini_pkd: multi-stage progressive compression of a conformer transducer, from scratch.

Read the files in the order of the README's map; this one only holds what all of them share.
"""

__version__ = "0.1.0"


class UserError(Exception):
    """Something the user can mend. Its message is one sentence: what is wrong, where, what to do.

    Commands catch it, print the sentence on stderr and exit with status 2; nobody sees a traceback.
    """
