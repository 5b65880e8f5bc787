"""Compression: raw artifacts to compressed variants."""
