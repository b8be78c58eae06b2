"""Asks for a one-time code, as a second factor does; run by PAM on the hosts. A code is good once.

A fake: the good codes are lines of a file that only root reads, where the tests put them.
"""

import os

CODES = "/run/one-time-codes"


def pam_sm_authenticate(pamh, flags, argv):
    """Ask, and take the code away if it is good."""
    answer = pamh.conversation(pamh.Message(pamh.PAM_PROMPT_ECHO_ON, "One-time code: "))
    path = os.path.join(CODES, pamh.get_user(None))
    try:
        with open(path) as file:
            good = file.read().split()
    except OSError:
        return pamh.PAM_AUTH_ERR
    if answer.resp not in good:
        return pamh.PAM_AUTH_ERR
    good.remove(answer.resp)
    with open(path, "w") as file:
        file.write("\n".join(good))
    return pamh.PAM_SUCCESS


def pam_sm_setcred(pamh, flags, argv):
    """There is nothing to do."""
    return pamh.PAM_SUCCESS
