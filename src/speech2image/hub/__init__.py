"""Weights in and out: safetensors run folders and converters of released checkpoints."""
