"""Recipes that project keys and values onto a basis."""
