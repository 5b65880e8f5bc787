"""Words and numbers that a text does not contain, for questions that it cannot answer by itself."""

from __future__ import annotations

from itertools import chain, count, islice, permutations
from random import Random

# Few look alike: a small model takes Amber for Ember over the raw cache too.
NAMES = """
Amber Aspen Basil Birch Cedar Crystal Dahlia Daisy Fern Flint Garnet Ginger Hazel Holly Indigo Iris Ivory Jasmine
Juniper Kestrel Laurel Lotus Maple Marble Nutmeg Olive Orchid Pearl Pepper Poppy Quartz Rowan Ruby Saffron Sage
Sienna Thistle Topaz Tulip Violet Willow Zinnia
"""
ANIMALS = """
badger beaver camel dolphin donkey eagle falcon giraffe heron kangaroo leopard lizard lobster otter parrot penguin
rabbit salmon sparrow squirrel tiger tortoise turkey wolf zebra
"""


def absent_words(random: Random, words: str, text: str, number: int) -> list[str]:
    """``number`` of ``words``, one string, that do not occur in ``text``, nor within its words. Pairs, if it has them all."""
    lowered = text.lower()
    drawn = random.sample(words.split(), len(words.split()))
    names = map(" ".join, chain.from_iterable(permutations(drawn, size) for size in count(1)))
    return list(islice((name for name in names if name.lower() not in lowered), number))


def absent_numbers(random: Random, text: str, number: int) -> list[str]:
    """``number`` different numbers of five digits that do not occur in ``text``. Longer ones, if it has nearly all."""
    numbers: list[str] = []
    draws = 0
    while len(numbers) < number:
        digits = 5 + draws // 1000
        draws += 1
        drawn = str(random.randrange(10 ** (digits - 1), 10**digits))
        if drawn not in text and drawn not in numbers:
            numbers.append(drawn)
    return numbers
