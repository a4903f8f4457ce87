"""The command line.

It needs the ``worker`` extra; with the bare package, which goes into applications, it says so instead of failing.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``evalpipe``; a user's mistake is one line on stderr and exit code 2, never a traceback."""
    from evalpipe.errors import EvalpipeError

    try:
        from evalpipe.cli.app import app
    except ModuleNotFoundError as error:
        sys.exit(f"evalpipe: the command line needs {error.name!r}: pip install 'evalpipe[worker]' (or [embedded])")
    try:
        app()
    except EvalpipeError as error:
        problem = str(error)
    except Exception as error:
        from evalpipe.cli.trouble import in_words

        problem = in_words(error)
        if not problem:
            raise
    else:
        return
    print(f"evalpipe: {problem}", file=sys.stderr)
    sys.exit(2)
