"""Merging what is not kept into what is.

Each function takes a dense layer and a mask [H, T] of the tokens that are kept, and gives the layer with the kept tokens' keys
and values changed; those of the others are left as they were. Functions that choose the tokens themselves give the mask too.
Keys are merged as they are cached, rotated at their own positions, as in the papers' code.
"""
