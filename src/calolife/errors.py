"""The three errors that are calolife's own; everything else is a ValueError or a TypeError."""

__all__ = ["FileFormatError", "MissingExtraError", "NotConvergedError"]


class FileFormatError(ValueError):
    """A file is not what it should be: wrong header, truncated, empty, unsafe."""


class MissingExtraError(ImportError):
    """An optional dependency is needed; the message says which extra installs it."""


class NotConvergedError(RuntimeError):
    """A fit or a training ended without an answer worth keeping."""
