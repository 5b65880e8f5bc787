"""Doors into other engines: a store's caches inside vLLM, LMCache and SGLang.

What all of them share lies here: which model an engine has loaded (``engine_model``), which cache a prompt begins with
(``lookup``), and its keys and values layer by layer (``reading``).
"""
