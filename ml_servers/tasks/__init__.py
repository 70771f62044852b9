"""Tasks: what a server learns and answers."""
