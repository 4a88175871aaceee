"""Floor 4: the PEFT tuner that hosts every method. The only place that touches PEFT's internals."""

# First of all, so that the registration that follows peft's import runs before any module of this folder is half-way through its own.
import peft as _peft  # noqa: F401
