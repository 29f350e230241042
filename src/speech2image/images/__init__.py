"""Image files and pixels: decode, box crop, pyramids, contact sheets."""
