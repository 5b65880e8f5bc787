"""Stages that turn tensors into bytes without loss; the last step of every pipeline."""
