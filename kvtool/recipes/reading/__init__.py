"""Recipes whose artifacts are read in part: only what a question needs."""
