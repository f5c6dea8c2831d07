"""Six assignments and their grader: `python -m tutorial.assignments --help`."""
