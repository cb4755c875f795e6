"""Errors that the user can fix (bad recipes, data, parents), and the signal that stops a run.

The former end a command with exit code 2 and no traceback.
"""

import signal


class InputError(Exception):
    """Something given to Onebase is wrong. The message says what, where, what was found and what to do."""


class RecipeError(InputError):
    """A recipe or an override on the command line."""


class DataError(InputError):
    """A record or a source of records."""


class RecordError(InputError):
    """A stage record, or an adapter that does not fit it."""


class CodeError(InputError):
    """Code that the recipe names did something wrong in the middle of a run. The command adds what giving it again does
    (`onebase.run.folders.what_follows`): resume from a checkpoint, or start again."""


class EndedError(InputError):
    """Raised at the end of a step to end the run there. The step's result is kept, and saved."""


class DivergedError(InputError, FloatingPointError):
    """Losses or gradients were not finite once too often."""


class BaseError(InputError):
    """The base model, its tokenizer, or the hardware for it."""


class Interrupted(KeyboardInterrupt):
    """A signal told the process to stop. Not an Exception: no library may swallow it as one of its errors."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells do it: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number
