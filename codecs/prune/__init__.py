"""Stages that leave out tokens, heads, layers or channels."""
