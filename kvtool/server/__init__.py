"""Cached documents over HTTP."""
