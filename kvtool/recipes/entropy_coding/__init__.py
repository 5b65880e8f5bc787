"""Recipes that rest on entropy coding."""
