"""The one kind of error a user is meant to read: a single line that says what is wrong and what to do."""


class KitError(ValueError):
    """Bad input or a state the kit cannot go on from; commands print its message and exit with 2."""
