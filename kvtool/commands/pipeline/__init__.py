"""Commands of a project: its build, and its first file."""
