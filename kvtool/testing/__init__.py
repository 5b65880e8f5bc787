"""Tests and tiny models for those who write parts of kvtool. Needs pytest."""
