"""Calibration: what a recipe learns about a model before it compresses."""
