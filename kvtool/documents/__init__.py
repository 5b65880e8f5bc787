"""Documents: which files are meant, what text they hold, and how it is split."""
