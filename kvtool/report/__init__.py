"""An evaluation as people read it: a table for the terminal, a page for the browser.

Both are made from the dictionary that ``kvtool eval --json`` prints, and from nothing else.
"""
