"""Every error a person can meet, as one tree.

    GossamerError
      InputError            what was given cannot be used: exit status 2
        ModelError          the model file or graph
        DataError           the samples, their labels, names or shapes
        OptionError         an option, a plan or a config
        OutputError         the place to write to
        ArchiveError        a .goss file
      MissingExtraError     an optional dependency is not installed: exit status 2
      CandidateError        one candidate failed; recorded, the run goes on

A message says what was got, what is allowed, which file, node or tensor, and what to do.
"""


class GossamerError(Exception):
    """Base of all errors raised on purpose; its text is one clear line."""


class InputError(GossamerError):
    """Something the person gave cannot be used."""


class ModelError(InputError):
    """The model cannot be read, or its graph cannot be used."""


class DataError(InputError):
    """The samples cannot be read, or do not fit the model."""


class OptionError(InputError):
    """An option, plan or config is wrong, or cannot apply where it was asked to."""


class OutputError(InputError):
    """The output place cannot be written."""


class ArchiveError(InputError):
    """An archive is damaged, of another version, or not one at all."""


class MissingExtraError(GossamerError):
    """An optional dependency is missing; the text holds the install line."""


class CandidateError(GossamerError):
    """One candidate could not be made or did not pass the gate."""
