"""Which tokens are kept: from all layers' scores, and the share of tokens to keep, a mask [H, T] bool for each layer.

``budget`` has what all share, ``layers`` how much each layer keeps, and ``heads`` how that is shared out among heads. Where
scores are equal, the lower index comes first: layer, then head, then token.
"""
