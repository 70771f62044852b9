"""The report of a finished run: pictures and one self-contained page."""
