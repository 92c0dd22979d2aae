"""The one exception that ends a command with a single line and exit status 2."""


class UserError(Exception):
    """Something that the user can put right: the message names what was wrong and what was expected."""
