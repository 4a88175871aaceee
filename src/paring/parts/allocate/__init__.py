"""Allocation: which ranks of all modules together are worth what they cost."""
