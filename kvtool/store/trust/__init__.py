"""Trust: signatures of documents, and the keys that they are checked with."""
