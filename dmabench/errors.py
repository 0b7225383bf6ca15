"""The one exception that a user sees as a sentence instead of a traceback."""


class Refusal(Exception):
    """Bad input or an impossible request: the message says what, why and what to do. Exit code 2."""
