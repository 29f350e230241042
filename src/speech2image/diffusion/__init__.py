"""Discrete diffusion over code grids: schedule, process, loss, networks and samplers."""
