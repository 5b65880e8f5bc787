"""Recipes that leave out tokens before any question is known."""
