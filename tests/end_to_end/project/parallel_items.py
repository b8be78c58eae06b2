"""A function for the items of a pilot."""

import os
import sys


def described(number, more):
    """The sum, and what the function sees of the program that prepared it."""
    return number + more, tuple(sys.argv), os.path.basename(os.getcwd())
