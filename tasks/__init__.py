"""What a model is trained and scored on. Imports as ``dmabench.tasks``."""
