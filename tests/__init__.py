"""What is proved of paring; the folders mirror src/paring."""
