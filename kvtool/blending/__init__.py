"""Blending: several cached documents in one prompt, a few of their tokens recomputed."""
