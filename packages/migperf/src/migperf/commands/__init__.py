"""The subcommands, grouped; `migperf.cli` puts them together."""
