"""Tokens chosen by the attention of a segment's last tokens."""
