"""The tree of errors.

AutoMonaiError
|-- UserError                    somebody can mend it: exit code 2
|   |-- DatasetError             problems of a dataset, all of them at once
|   |-- SpecError                a study's spec, a configuration file, a command's argument
|   |-- StoreAccessError         a store's location, keys or rights
|   |-- StudyNotFoundError       no study at that place
|   `-- StudyLockedError         another controller writes this study
|-- RunError                     a run ends as FAILED and is never tried again
|   |-- BadRequestError          exit code 64
|   |-- NonFiniteLossError       exit code 65
|   |-- RunOutOfMemoryError      exit code 66
|   |-- DoesNotFitError          exit code 66: refused before it ran
|   `-- TooSlowError             exit code 67
|-- LostTooOftenError            the infrastructure lost work again and again: once that is mended it may go on
|-- StopRequestedError           SIGTERM: state is saved, the run may go on later
|-- ClusterError                 the Kubernetes API refused something, or is away: exit code 75
`-- StorageError
    |-- ObjectNotFoundError
    |-- CorruptObjectError       what was read is not what was written
    `-- StoreUnavailableError    the store is away: exit code 75
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

TRY_LATER = 75
"""Exit code when a service was away: EX_TEMPFAIL of sysexits.h."""


class AutoMonaiError(Exception):
    """Base of every error that this package raises on purpose."""


class UserError(AutoMonaiError):
    """Something in the user's hands is wrong; the message says what was found, where, and what to do."""


class DatasetError(UserError):
    """A dataset cannot be used.

    Attributes:
        problems: One line per fault, each naming its case or file.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        """Store the problems; the message is their lines."""
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SpecError(UserError):
    """A spec, a configuration or an argument is invalid."""


class StoreAccessError(UserError):
    """A store cannot be used: a location that is none, a missing bucket, keys or rights that do not suffice."""


class StudyNotFoundError(UserError):
    """There is no study where one was named."""


class StudyLockedError(UserError):
    """Another controller is writing this study."""


class RunError(AutoMonaiError):
    """A run ended by its own fault: repeating it would end the same way."""

    exit_code: ClassVar[int] = 64
    reason: ClassVar[str] = "bad_configuration"


class BadRequestError(RunError):
    """The request or its configuration cannot be trained."""


class NonFiniteLossError(RunError):
    """The training loss became NaN or infinite."""

    exit_code = 65
    reason = "non_finite_loss"


class RunOutOfMemoryError(RunError):
    """The run needed more memory than there is."""

    exit_code = 66
    reason = "out_of_memory"


class DoesNotFitError(RunError):
    """The run's plan needs more memory than it may use; it was not started."""

    exit_code = 66
    reason = "does_not_fit"


class TooSlowError(RunError):
    """The run's predicted cost exceeds the cap of the spec."""

    exit_code = 67
    reason = "too_slow"


class LostTooOftenError(AutoMonaiError):
    """The infrastructure lost a study's work too often; once that is mended the study goes on.

    Not to be tried again by itself: what has not come through in many attempts asks for a look.
    """


class StopRequestedError(AutoMonaiError):
    """The worker was asked to leave; its last checkpoint is committed."""


class ClusterError(AutoMonaiError):
    """The Kubernetes API refused something or did not answer.

    Attributes:
        status: The HTTP status; 0 when nothing answered.
    """

    def __init__(self, message: str, *, status: int) -> None:
        """Store the status beside the message."""
        super().__init__(message)
        self.status = status

    @property
    def exit_code(self) -> int:
        """Return what a command ends with."""
        return TRY_LATER if self.is_passing else 1

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later: the API is away or overburdened."""
        return self.status in (0, 429) or self.status >= 500

    @property
    def is_refusal(self) -> bool:
        """Whether the API does not know us or our rights; for some seconds after its start it knows nobody's."""
        return self.status in (401, 403)


class StorageError(AutoMonaiError):
    """A store did not do what was asked."""


class ObjectNotFoundError(StorageError):
    """There is no object under that key."""


class CorruptObjectError(StorageError):
    """An object's content does not match its recorded checksum or form."""


class StoreUnavailableError(StorageError):
    """The store did not answer, or was overburdened, for as long as it was asked; later the same may succeed."""

    exit_code: ClassVar[int] = TRY_LATER


def described(error: BaseException) -> str:
    """Return an error's message; one that this package did not raise on purpose has its kind before it."""
    return f"{error}" if isinstance(error, AutoMonaiError) else f"{type(error).__name__}: {error}"
