"""``kvtool doctor``: what is installed, what this machine can do, what is missing, and the command for it."""
