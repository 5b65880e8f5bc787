"""Runs a transformers model over token ids and caches; knows no files."""
