"""Making room in a store: which documents and variants go, and their removal."""
