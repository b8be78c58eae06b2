"""How the grid's tables came to be what they are, step by step: a file in `versions/` for each."""
