"""Catalogs: a store's documents by name, without their artifacts. Nothing here imports torch."""
