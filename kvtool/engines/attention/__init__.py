"""Attention that is overridden, and measurements of a model's attention."""
