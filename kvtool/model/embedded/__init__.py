"""The embedded model: a small one to try kvtool with, in a package of its own."""
