"""Run the command line with ``python -m gptr``."""

from gptr.cli import main

main()
