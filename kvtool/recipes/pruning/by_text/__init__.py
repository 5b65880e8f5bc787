"""Tokens chosen by the text alone."""
