"""Floor 8: the command line. Commands are small files under ``commands``; nothing here is imported by the library."""
