"""``python -m nasa``."""

from nasa.cli import main

main()
