"""Commands that describe kvtool itself, and this installation of it."""
