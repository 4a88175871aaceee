"""Floor 2: the choices that a method is made of, one idea a file."""
