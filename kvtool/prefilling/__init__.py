"""Prefilling: documents to raw artifacts."""
