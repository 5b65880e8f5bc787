"""Recipes that quantize keys and values."""
