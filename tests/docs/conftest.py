"""The bucket that pages read and write."""

from tests.loopback import endpoint, objects

__all__ = ["endpoint", "objects"]
