"""Heads that keep all tokens, and others that keep few."""
