"""Tokens chosen by what a repetition of the text looks up."""
