"""Cached contents, as Gemini's API has them."""
