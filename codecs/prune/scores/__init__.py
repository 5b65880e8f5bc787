"""What tokens are worth keeping: a layer's scores [H, T] float32, larger for tokens to keep.

Each module has the scores that read the same inputs; ``inputs`` says what these are, ``table`` lists the scores by name.
"""
