"""python -m tutorial.assignments: build the assignments, and grade what students hand in."""

import argparse
import sys
import warnings
from pathlib import Path

from mini_pkd.command import UsageError, command, disk_errors

from . import build, grade, jail, nbgrader_export
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

    building = actions.add_parser("build", help="what students get and what the teacher keeps")
    building.add_argument(
        "--to", required=True, metavar="DIR", help="DIR/students is for the class, DIR/teacher is not"
    )
    building.add_argument(
        "--dialect", metavar="KEY", help="draw the conventions from this word; default: the package's"
    )
    building.add_argument("--only", nargs="+", choices=names, default=names, metavar="aN", help="default: all")

    grading = actions.add_parser("grade", help="grade what students have handed in")
    grading.add_argument("assignment", choices=names, metavar="aN")
    grading.add_argument(
        "submissions", nargs="+", metavar="SUBMISSIONS", help="folders of ID/aN.py, ID_aN.py or ID.zip, or single ones"
    )
    grading.add_argument("--key", required=True, metavar="FILE", help="teacher/key.json, which build has written")
    grading.add_argument(
        "--out", required=True, metavar="DIR", help="results go here; finished ones are not done again"
    )
    grading.add_argument("--jail", choices=jail.NAMES, default="auto", help="default: auto, which is bwrap, else uid")
    grading.add_argument(
        "--jobs", type=jobs, default=jail.cores(), metavar="N", help="submissions at once; default: cores"
    )
    grading.add_argument("--quiet", action="store_true", help="no progress bar")

    exporting = actions.add_parser("nbgrader", help="write an assignment for nbgrader (the README says what it leaks)")
    exporting.add_argument("assignment", choices=names, metavar="aN")
    exporting.add_argument("--key", required=True, metavar="FILE", help="teacher/key.json, which build has written")
    exporting.add_argument("--to", required=True, metavar="DIR", help="the folder `source` of an nbgrader course")
    return parser


def jobs(text):
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"it is a number from 1 to 64, not {text!r}")
    return int(text)


@command("assignments")
def main(arguments=None):
    options = parser().parse_args(arguments)
    if options.action == "build":
        with disk_errors(options.to):
            build.build(options.to, options.only, options.dialect)
        print(f"for the class: {options.to}/students    for you alone: {options.to}/teacher")
        return
    if options.action == "nbgrader":
        with disk_errors(options.to):
            print(nbgrader_export.write(options.assignment, grade.read_key(options.key), Path(options.to)))
        return
    warnings.simplefilter("ignore", RuntimeWarning)  # a mutant's mean of nothing is none of the teacher's business
    with disk_errors(options.out):
        results = grade.grade(
            options.assignment, options.submissions, options.key, options.out, options.jail, options.jobs, options.quiet
        )
    for name, result in sorted(results.items()):
        print(f"{result['score']:6g}  {name}", result["extra_data"]["problem"] or "", sep="  ")
    kind = next(iter(results.values()))["extra_data"]["jail"]
    print(f"jail: {kind}; {options.out}/class.csv, feedback/, results/, and overlap.csv for you alone")


if __name__ == "__main__":
    sys.exit(main())
