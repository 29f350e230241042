"""Encoders of captions, the text side of the comparisons: captions in, `Condition` out."""
