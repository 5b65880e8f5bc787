"""kvtool and LMCache: documents pushed into a running server, and kvtool's codecs for what it stores.

What is said here of LMCache's interfaces was read in, and tested with, its version 0.5.6. Only ``serde``, ``plugin`` and
``session`` import it.
"""
