"""python -m tutorial.assignments: build the assignments, and grade what students hand in."""

import argparse
import sys

from mini_pkd.command import UsageError, command

from . import task as form

PROGRAM = "python -m tutorial.assignments"


class Parser(argparse.ArgumentParser):
    """argparse's parser, except that its errors are one sentence."""

    def error(self, message):
        raise UsageError(f"{message}; --help shows what can be given.")


def parser():
    parser = Parser(prog=PROGRAM, description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)
    names = [name for name in form.NAMES if form.exists(name)]

    build = actions.add_parser("build", help="what students get and what the teacher keeps")
    build.add_argument("--to", required=True, metavar="DIR", help="DIR/students is for the class, DIR/teacher is not")
    build.add_argument(
        "--dialect", metavar="KEY", help="draw the class's conventions from this word; default: the package's"
    )
    build.add_argument("--only", nargs="+", choices=names, default=names, metavar="aN", help="default: all")
    return parser


@command("assignments")
def main(arguments=None):
    options = parser().parse_args(arguments)
    if options.action == "build":
        from .build import build

        build(options.to, options.only, options.dialect)


if __name__ == "__main__":
    sys.exit(main())
