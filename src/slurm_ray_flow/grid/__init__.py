"""The grid: campaigns of many items over several clusters (docs/decisions/0016)."""
