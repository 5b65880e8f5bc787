"""HTTP: sockets, limits, tokens, logs, metrics, errors."""
