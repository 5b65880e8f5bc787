"""Tokens chosen by the attention of all later tokens."""
