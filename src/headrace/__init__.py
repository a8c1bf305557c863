"""Headrace, from click to lift: a large-scale machine-learning system in Python."""
