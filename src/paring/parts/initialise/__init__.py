"""Initialisers: where a module's factors start.

All are imported here, so that a configuration that names one can be read whichever method it belongs to.
"""

from paring.parts.initialise import from_adapter as from_adapter
from paring.parts.initialise import kaiming as kaiming
