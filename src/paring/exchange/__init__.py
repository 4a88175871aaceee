"""Floor 4: adapters to and from disk in PEFT's layout, and what serving engines make of them."""
