"""Image codecs: photographs to grids of code numbers and back."""
