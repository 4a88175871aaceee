"""Floor 3: what acts on all slots of an adapter together, after optimizer steps, by itself."""
