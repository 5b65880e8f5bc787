"""Attention of our own, and what is observed of a model's attention."""
