"""Generative adversarial networks: generators, discriminators and their building blocks."""
