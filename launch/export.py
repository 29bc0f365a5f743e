"""Exports the newest parameters of a run as a Hugging Face folder: `python launch/export.py RUN --out FOLDER`."""

from rljax._entry_points import export

if __name__ == "__main__":
    export()
