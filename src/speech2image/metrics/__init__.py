"""Evaluation measures under named protocols."""
