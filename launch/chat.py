"""Talks to a model in the terminal: `python launch/chat.py FOLDER_OR_RUN`."""

from rljax._entry_points import chat

if __name__ == "__main__":
    chat()
