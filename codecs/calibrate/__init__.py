"""Fits: samples of a model's caches → a recipe's calibration. Arrays only: no model, no files."""
