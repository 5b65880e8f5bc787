"""Documents from one store to another: what is missing there, in parallel, checked on arrival."""
