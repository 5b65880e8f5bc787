"""Agreement of two answers, in the manner of SQuAD (arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

_ARTICLES = {"a", "an", "the"}

# Scripts without spaces between words: Thai and Lao, Burmese, Khmer, kana, Chinese characters. Each character is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def exact(answer: str, expected: str) -> bool:
    """Whether both have the same words in the same order, whatever their case, punctuation and articles."""
    return _words(answer) == _words(expected)


def f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the words of ``answer``, 0 to 1. Two empty answers agree."""
    words, expected_words = _words(answer), _words(expected)
    if not words or not expected_words:
        return float(words == expected_words)
    return 2 * (Counter(words) & Counter(expected_words)).total() / (len(words) + len(expected_words))


def _words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if not _is_punctuation(c))
    words = [word for word in _WORD.findall(bare) if word not in _ARTICLES]
    # An answer of nothing else, such as an operator, is not an empty one.
    return words or text.split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")
