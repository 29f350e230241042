"""speech2image: train, compare and use every method that paints an image from a spoken sentence.

Importing this package is light: no torch, no Lightning.  The command line is `speech2image`
(`app/cli.py`); the Hydra tree is `conf/` at the top of the repository.
"""

__version__ = "0.1.0"
