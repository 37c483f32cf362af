"""The command `fastjac`: demo, train, harden, evaluate, paper, explain, info.

Wrong arguments end with one line and exit code 2, expected failures (a damaged file, a
diverged training) with one line and exit code 1, Ctrl-C with 130. A traceback is a bug.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from fastjac.build import build_info

EXTRA = "pip install 'fastjac[cli]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: without the program's name; None for those of this process.

    Example:
        >>> main(["harden", "--lam", "much"])
        2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from fastjac import commands
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        if given == ["info"]:  # what to send with a bug report needs no extra
            print(build_info())
            return 0
        return _fail("fastjac", f"its commands need {package}: {EXTRA}", 1)
    except KeyboardInterrupt:
        return 130
    name = " ".join(["fastjac", *(a for a in given[:1] if a in commands.names())])
    try:
        return commands.run(given)
    except commands.UsageError as error:
        hint = f" (see {name} --help)"
        return _fail(name, error.format_message().rstrip(".") + hint, 2)
    except commands.EXPECTED as error:
        return _fail(name, str(error), 1)
    except ValueError as error:
        return _fail(name, str(error), 2)


def _fail(name: str, message: str, code: int) -> int:
    process = os.environ.get("RANK", "0")
    if process != "0":
        if code == 2:  # of all processes that torchrun started, one tells it
            return code
        name += f" (process {process})"
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return code
