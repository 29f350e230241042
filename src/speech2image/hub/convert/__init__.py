"""Converters, one file for each released system."""
