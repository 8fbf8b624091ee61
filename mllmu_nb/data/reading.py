"""The former name of ``mllmu_nb.data.text``, for importers that still have it."""

from mllmu_nb.data.text.names import names_in, with_name
from mllmu_nb.data.text.people import pairs_of, read_profiles
from mllmu_nb.data.text.questions import population_from_text
from mllmu_nb.data.text.reader import attribute_of, attributes_of, understand, value_of

__all__ = [
    "attribute_of",
    "attributes_of",
    "names_in",
    "pairs_of",
    "population_from_text",
    "read_profiles",
    "understand",
    "value_of",
    "with_name",
]
