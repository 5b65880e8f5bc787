"""Stores: documents by name, their artifacts by digest."""
