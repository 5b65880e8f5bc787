"""Commands that measure: what recipes cost, which to take, and from when on a cache pays."""
