"""Tokens chosen by keys, values and places alone."""
