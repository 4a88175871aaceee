"""Floor 1: the arithmetic of the adapted linear, each fast form with its plain-torch twin."""
