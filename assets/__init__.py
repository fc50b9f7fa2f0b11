"""The study: its CSV files, and what makes tables, figures and pictures of them, as `python -m assets.NAME`."""

import argparse
import os
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # a notebook's is not to be had elsewhere, and matplotlib cannot be imported with it

import matplotlib

from common import RunError

matplotlib.rcdefaults()  # pictures do not depend on the user's matplotlibrc

ASSETS = Path(__file__).parent


class Command(argparse.ArgumentParser):
    """A command line, whose defaults hold the `function` that its arguments go to.

    Wrong arguments end in one line and exit code 2, a RunError or an OSError of the function in one line and 1.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help says what it takes)\n")

    def run(self):
        arguments = vars(self.parse_args())
        function = arguments.pop("function")
        try:
            function(**arguments)
        except (RunError, OSError) as error:
            self.exit(1, f"{self.prog}: error: {error}\n")


def positive(text):
    """A whole number from 1 on, as the type of an argument."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)
