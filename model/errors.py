"""The error that the model package raises for a file that cannot be used."""


class BundleError(ValueError):
    """A file is not an exported model; the message names the file and the reason."""
