"""Losses as functions without state, each beside its equation."""
