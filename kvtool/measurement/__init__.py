"""Measurement: contexts, distortion and statistics, for evaluation and rate control."""
