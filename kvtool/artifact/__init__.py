"""Artifacts: one segment's KV in one safetensors file."""
