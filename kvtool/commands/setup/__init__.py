"""Commands that set up the installation itself."""
