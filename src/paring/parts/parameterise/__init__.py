"""Parameterisations: the trainable module that an adapter puts beside one base layer."""
