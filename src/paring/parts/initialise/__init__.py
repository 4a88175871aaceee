"""Initialisers: where a module's factors start."""
