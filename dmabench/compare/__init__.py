"""Two runs, cell by cell: faster, slower, the same, or unsure."""
