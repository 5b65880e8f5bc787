"""Tokens that are merged into those that stay."""
