"""``paring study``: a file that says what is compared, and the runs that it asks for."""
