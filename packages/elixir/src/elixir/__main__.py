"""``python -m elixir``."""

from elixir.cli import main

main()
