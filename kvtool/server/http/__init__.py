"""HTTP: sockets, limits, tokens, logs, metrics, errors, routes. Knows no model and no API."""
