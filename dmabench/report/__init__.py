"""One page of everything, and runs written in other formats."""
