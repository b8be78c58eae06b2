"""A module of the project that travels along."""


class GivenError(Exception):
    """An exception of the user's own."""


def decorated(word):
    return f"<{word}>"
