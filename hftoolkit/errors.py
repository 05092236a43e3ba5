"""The exceptions a user can meet, and the exit code of each.

HFToolkitError
+-- RecipeError          2   the recipe or the command line is wrong
+-- DataError            3   data or weights are bad or unsafe
+-- EnvironmentFault     4   missing package, no network, no permission, disk full
+-- TrainingError        5   non-finite loss, out of memory
+-- ArtifactError        6   the artifact failed its own gate
+-- Interrupted   130, 143   SIGINT or SIGTERM; what was good is kept

Messages say what was found, what is allowed and what to type instead. Anything else is a bug and keeps its traceback.
"""


class HFToolkitError(Exception):
    """An expected failure: one message on stderr, no traceback."""

    exit_code = 1


class RecipeError(HFToolkitError):
    """The recipe, an override or the command line is not valid."""

    exit_code = 2


class DataError(HFToolkitError):
    """Data or weights are missing, malformed or unsafe."""

    exit_code = 3


class EnvironmentFault(HFToolkitError):
    """The machine cannot do what was asked: network, package, permission, disk."""

    exit_code = 4


class TrainingError(HFToolkitError):
    """Training cannot go on: non-finite values or no memory."""

    exit_code = 5


class ArtifactError(HFToolkitError):
    """What was written does not give the same predictions when plain libraries load it."""

    exit_code = 6


class Interrupted(HFToolkitError):
    """The user or the system asked the run to stop.

    Args:
        message: what was kept and where.
        signal_number: 2 (SIGINT) or 15 (SIGTERM); the exit code is 128 plus it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
