"""Stages that change the basis: rotations, low rank, differences."""
