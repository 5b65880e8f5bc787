"""How an encoded segment is laid out: tensors, metadata, bytes."""
