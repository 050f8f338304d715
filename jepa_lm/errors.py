"""Errors that a user can mend. Entry points print them as one line and exit with `exit_code`."""


class UserError(ValueError):
    """A setting or a file is wrong: the message names the key, the value and what would be right."""

    exit_code = 2


class OverCapError(UserError):
    """The exported artifact does not fit the byte budget."""

    exit_code = 3
