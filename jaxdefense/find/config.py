"""Settings of `jaxdefense find`."""

import dataclasses

from jaxdefense.errors import InputError
from jaxdefense.settings import Anywhere, Place, RunPlace, check_positive, told

_MOST = 2000  # photos on a contact sheet


@dataclasses.dataclass(frozen=True)
class FindConfig:
    """`jaxdefense find`."""

    out: RunPlace
    """Directory to write: a folder of photos a person, as `faces` takes it."""
    names: Anywhere
    """Names file of the people to look for."""
    shards: Place
    """Photos with captions: .tar as webdataset writes them, or Parquet; a range or a glob; ::COLUMN
    at its end names the captions."""
    photo_column: str = ""
    """Column of the photos in Parquet; without it, the one that its name shows."""
    num_photos: int = 100
    """Photos a person, at most."""
    json: bool = told(False)
    """Print the result as one JSON object."""

    def __post_init__(self):
        check_positive(num_photos=self.num_photos)
        if self.num_photos > _MOST:
            raise InputError(
                f"`num_photos` (={self.num_photos}) must be at most {_MOST}: a person looks at "
                "each."
            )
