"""How a script ends: one line for what a person can mend, and no traceback for it."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from server.errors import SparrowError, UsageError


class Parser(argparse.ArgumentParser):
    """argparse prints its whole usage with every error; a person needs the one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def refuse_mistakes(parse: Callable[[list[str]], object]) -> None:
    """End the process with one line and 2 if `parse` does not like the arguments."""
    try:
        parse(sys.argv[1:])
    except SparrowError as error:
        print(error.message, file=sys.stderr)
        sys.exit(2)


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """End the process with main's code; 2 for an error that has a text for people, 130 after Ctrl-C."""
    try:
        code = main(sys.argv[1:])
    except SparrowError as error:
        print(error.message, file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\nInterrupted: the next start goes on from here.", file=sys.stderr)
        code = 130
    sys.exit(code)
