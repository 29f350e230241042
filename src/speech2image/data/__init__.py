"""Corpora behind one manifest, memory-mapped stores, positional order, batches."""
