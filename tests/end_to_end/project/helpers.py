"""A module of the user's own, which the functions import."""

FACTOR = 3


def triple(number):
    return FACTOR * number


class HelperError(Exception):
    def __init__(self, code, detail):
        super().__init__(code, detail)
        self.code = code
