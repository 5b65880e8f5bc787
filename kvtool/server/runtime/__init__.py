"""The model's thread, its caches, and what each request needs of them, whichever API it came by."""
