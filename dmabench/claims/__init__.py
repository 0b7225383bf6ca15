"""The paper's claims and ours, each judged by its rule."""
