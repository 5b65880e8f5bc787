"""The joint dial of recipes that leave out tokens: how many to keep, and how finely to code them, for a size."""
