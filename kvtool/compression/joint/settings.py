"""Settings that just meet a size that is asked for, found by the sizes of the documents alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from kvtool.calibration.search import Setting, search
from kvtool.codecs.recipe import Between
from kvtool.compression.joint.choice import Candidate
from kvtool.compression.joint.space import Space, Wanted, percent, shown
from kvtool.compression.target import KEEP
from kvtool.errors import UsageError

KEEPS = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
"""Shares kept, of the most that may be, for which a dial is searched."""

Parameters: TypeAlias = Mapping[str, float]

Measure: TypeAlias = Callable[[Parameters], float]
"""Maps parameters to a size of the documents."""


@dataclass
class Finder:
    """Finds settings of ``space`` that meet ``wanted``.

    ``bits`` per value and the ``resident`` share are measured on the documents.
    """

    space: Space
    wanted: Wanted
    bits: Measure
    resident: Measure

    def candidates(self) -> list[Candidate]:
        """Settings that differ in how many tokens they keep or in how finely they code them, none worse than another in both.

        Raises ``UsageError`` where none meets what is wanted, with the one that comes nearest.
        """
        most = self._most_in_memory()
        settings: list[Parameters]
        if self.wanted.target is None:
            settings = [self._kept(most) | dict(finer) for finer in self.space.grid]
        elif isinstance(self.space.settings, Between):
            settings = list(self._by_dial(self.wanted.target.limit, most))
        else:
            settings = list(self._by_bits(self.wanted.target.limit, most))
        return [Candidate(setting, self.bits(setting), self.resident(setting)) for setting in settings]

    def _most_in_memory(self) -> float:
        """The largest share that may be kept."""
        if self.space.keep is None or self.wanted.resident is None:
            return 1.0
        limit, coding = self.wanted.resident, self.space.grid[0]
        most = self._largest_keep(_along(self.resident, coding, KEEP), limit, limit, 1.0)
        if not most.met:
            self._refuse(f"{percent(most.measured)} of the raw cache's memory", most.parameter)
        return most.value

    def _by_dial(self, limit: float, most: float) -> Iterator[Parameters]:
        """For each of a few shares to keep, the finest setting of the dial."""
        assert isinstance(self.space.settings, Between)
        between = self.space.settings.low, self.space.settings.high
        start, is_met = self.space.default, False
        for keep in self._keeps(most):
            found = _search(
                _along(self.bits, keep, self.space.name),
                limit,
                name=self.space.name,
                start=start,
                between=between,
                rising=False,
            )
            # That of the next share is near: where all tokens are coded, it is the same.
            start, setting = found.value, {**keep, **found.parameter}
            if found.met:
                is_met = True
                yield setting
        if not is_met:
            self._refuse_bits(setting)

    def _by_bits(self, limit: float, most: float) -> Iterator[Parameters]:
        """For each of a few numbers of bits, the largest share to keep; where that is set, the most bits."""
        kept = 0.0
        for coding in self.space.grid:
            setting = coding
            if self.space.keep is None:
                if self.bits(setting) <= limit:
                    yield setting
                    return
                continue
            found = self._largest_keep(_along(self.bits, coding, KEEP), limit, most, most)
            setting = {**found.parameter, **coding}
            # Fewer bits are worth nothing where they keep no more tokens.
            if found.met and found.value > kept:
                kept = found.value
                yield setting
        if not kept:
            self._refuse_bits(setting)

    def _keeps(self, most: float) -> list[dict[str, float]]:
        """A few shares to keep, the largest first; one that says nothing where it is set."""
        if self.space.keep is None:
            return [{}]
        shares = (max(float(f"{most * share:.4g}"), self.space.keep.low) for share in KEEPS)
        return [self._kept(share) for share in dict.fromkeys(shares)]

    def _kept(self, share: float) -> dict[str, float]:
        return {} if self.space.keep is None else {KEEP: share}

    def _largest_keep(
        self, measure: Callable[[float], float], limit: float, start: float, most: float
    ) -> Setting:
        assert self.space.keep is not None
        between = (self.space.keep.low, most)
        return _search(measure, limit, name=KEEP, start=min(start, most), between=between, rising=True)

    def _refuse_bits(self, nearest: Parameters) -> NoReturn:
        assert self.wanted.target is not None
        self._refuse(self.wanted.target.describe(self.bits(nearest)), nearest)

    def _refuse(self, size: str, nearest: Parameters) -> NoReturn:
        reason = f"recipe {self.space.recipe!r} comes no nearer on these documents than {size}, with {shown(nearest)}"
        raise UsageError(self.wanted.options, reason, "ask for that, or take another recipe")


def _along(measure: Measure, setting: Parameters, name: str) -> Callable[[float], float]:
    """The size of ``setting``, by the value of the parameter ``name``."""
    return lambda value: measure({**setting, name: value})


def _search(
    measure: Callable[[float], float],
    limit: float,
    *,
    name: str,
    start: float,
    between: tuple[float, float],
    rising: bool,
) -> Setting:
    """``search``, which gives up where sizes hardly change any more; then from the end that is smallest."""
    found = search(measure, limit, name=name, start=start, between=between, rising=rising)
    if found.met:
        return found
    known = (between[0] if rising else between[1], found.value)
    return search(measure, limit, name=name, start=start, between=between, rising=rising, known=known)
