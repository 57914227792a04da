"""Which frozen encoder serves my medical imaging task, and how good is it, honestly?

Importing this package imports nothing heavy: no torch, no pandas, no network, no folder made.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
