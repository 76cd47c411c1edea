"""Pure functions on explicit pytrees; see `dims.py` for the letters."""
