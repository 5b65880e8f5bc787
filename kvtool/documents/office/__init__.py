"""Office documents, books and notebooks as text; the bounds within which they are converted."""
