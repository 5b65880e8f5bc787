"""Inputs of stages that are not attention."""
