"""``kvtool build``: a project's documents → its store, as a file says that it should be, and a lock that says what it is."""
