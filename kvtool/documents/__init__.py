"""Documents: which files are meant, what text they hold, and how it is cut to fit a model's context."""

from kvtool.documents.find import Found, find
from kvtool.documents.read import read_text
from kvtool.documents.split import Piece, split

__all__ = ["Found", "Piece", "find", "read_text", "split"]
