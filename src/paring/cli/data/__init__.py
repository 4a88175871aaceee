"""Data sets: reading them, telling what task they hold, encoding them, scoring predictions."""
