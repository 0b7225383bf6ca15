"""What rows say, before anything draws it: means, controls, speed-ups, notes on what to doubt."""
