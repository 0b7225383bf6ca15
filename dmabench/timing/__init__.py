"""Time and memory of one cell, in a worker process that may die without taking the run along."""
