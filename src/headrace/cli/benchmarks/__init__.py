"""Subcommands of ``headrace bench``, one thin file each."""
