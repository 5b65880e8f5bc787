"""Other programs' processor time, told apart from this process's own."""

from __future__ import annotations

import time

import psutil
import pytest

from kvtool.breakeven.other_programs import OtherPrograms


class Clock:
    """A machine of four cores whose times are set by hand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall = self.own = self.busy = 0.0
        patch.setattr(time, "monotonic", lambda: self.wall)
        patch.setattr(time, "process_time", lambda: self.own)
        patch.setattr(psutil, "cpu_count", lambda: 4)
        patch.setattr(psutil, "cpu_times", lambda: type("Times", (), {"user": self.busy, "idle": 1e6})())


def test_this_process_is_not_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        others = OtherPrograms()
        clock.wall, clock.own, clock.busy = 10.0, 20.0, 20.5
        assert others.share == pytest.approx(0.0125)
        assert not others.notes()


def test_others_are_named_with_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        others = OtherPrograms()
        clock.wall, clock.own, clock.busy = 10.0, 20.0, 36.0
        assert others.share == 0.4
        (note,) = others.notes()
        assert note.startswith("Other programs kept 40% of this machine's cores busy meanwhile")
