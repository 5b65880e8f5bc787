"""Commands for other engines that take a store's caches: ``kvtool connector …``."""
