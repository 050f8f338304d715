"""The parser of a command of `python -m`: a wrong word is an error in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from jepa_lm.utils.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises a UserError in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
