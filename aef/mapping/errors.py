"""What cannot be embedded."""


class EmbeddingError(ValueError):
    """A chip or period that cannot be embedded; one line."""
