"""Cached documents over HTTP.

Packages import downwards only: ``app`` → ``openai`` → ``cached_contents`` → ``runtime`` → ``http``. ``store_api`` and ``web``
stand beside these two APIs, on ``runtime``.
"""
