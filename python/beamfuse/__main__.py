"""`python -m beamfuse` is the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    from ._native import run_command

    code = run_command(["beamfuse", *sys.argv[1:]])
    # The engine's threads may still be at work on what was given up: the end need not wait for them.
    os._exit(code)


if __name__ == "__main__":
    main()
