"""Stages that turn floats into a few levels."""
