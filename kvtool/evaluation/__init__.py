"""Evaluation: what `kvtool eval` compares, runs and summarizes."""
