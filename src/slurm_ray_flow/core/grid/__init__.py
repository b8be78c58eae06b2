"""The pure parts of the grid: neither database nor clock."""
