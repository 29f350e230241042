"""`python -m speech2image`."""

from speech2image.app.cli import script

if __name__ == "__main__":
    script()
