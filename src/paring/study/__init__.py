"""Floor 6: comparisons that can be believed. Each method's rate is searched with the same means, on rows that nothing is scored on."""
