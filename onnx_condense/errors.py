"""Everything this package raises on purpose. Imports nothing.

CondenseError                 what the user sees as one line; carries the exit code of the command
├── InputError        exit 1  an input file is missing, unreadable, invalid or unsupported
│   ├── ModelError            the network
│   └── CalibrationError      the samples
├── UsageError        exit 2  a wrong option value, options that exclude each other, an OUT that can't be written
├── BudgetError       exit 3  a size or speed that can't be reached, a threshold that misses the tolerance
└── DefectError       exit 4  the rewritten graph disagrees with its plan: our defect, nothing is written
"""

from __future__ import annotations


class CondenseError(Exception):
    """Root of the tree.

    Attributes:
        code: stable machine-readable slug, for example ``"calibration-shape"``.
        text: one line that names the file, node or tensor and says what to do.
        node: the node or tensor at fault, or None.
    """

    exit_code = 70

    def __init__(self, code: str, text: str, node: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.node = node


class InputError(CondenseError):
    """An input file is missing, unreadable, invalid or unsupported."""

    exit_code = 1


class ModelError(InputError):
    """The network can't be read, checked or run."""


class CalibrationError(InputError):
    """The calibration or verification samples can't be used with this network."""


class UsageError(CondenseError):
    """The call itself is wrong."""

    exit_code = 2


class BudgetError(CondenseError):
    """A size or speed can't be reached, or the channels to merge by a threshold cost more than the tolerance."""

    exit_code = 3


class DefectError(CondenseError):
    """The rewritten graph disagrees with the plan it was made from."""

    exit_code = 4
