"""The loop checked from outside, against a world whose truth is known."""
