"""Several requests in one pass of the model."""
