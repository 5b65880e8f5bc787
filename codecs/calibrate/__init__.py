"""Fits: from samples of a model's caches to what a recipe holds of it. Arrays only; no model, no files."""
