"""A proxy before another engine: documents by name become token ids; everything else is passed on."""
