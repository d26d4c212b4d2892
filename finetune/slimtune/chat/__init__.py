"""Chat: a conversation on the terminal, with one model or two side by side."""
