"""Tokens chosen, or made, by the attention of all later tokens."""
