"""This package's version, for whoever must not import the package itself."""

__version__ = "0.1.0"
