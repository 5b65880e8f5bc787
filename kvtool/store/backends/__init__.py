"""Backends: where a remote store's bytes come from."""
