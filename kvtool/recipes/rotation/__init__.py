"""Recipes that rotate keys and values before they quantize."""
