"""Documents and artifacts over HTTP."""
