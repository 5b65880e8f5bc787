"""The JSON that commands print with ``--json``: a class for each value, and the table of commands.

These classes say what is printed, and are not what prints it. A test runs every command and compares.
"""
