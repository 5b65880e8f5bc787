"""Pages that are written from the code: ``python -m docsgen`` writes them, ``python -m docsgen --check`` compares them."""
