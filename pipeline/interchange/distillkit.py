"""DistillKit's Parquet files: polynomial-compressed log-probabilities, and the older "legacy" form.

It knows which columns the files have and how a configuration is written down; what a position's bytes mean,
`distillkit_forms` knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, model_validator

from pipeline.interchange.columns import BadCell, parquet_columns, parquet_rows, parquet_units, whole_numbers
from pipeline.interchange.distillkit_forms import Legacy, Polynomial
from pipeline.interchange.sequences import Sequence, SequenceImporter
from pipeline.interchange.source import Source
from pipeline.targets.errors import ConfigError
from pipeline.targets.spec import Spec
from pipeline.targets.unit import Unit

POLYNOMIAL = {"input_ids": 1, "compressed_logprobs": 2, "bytepacked_indices": 2}
LEGACY = {"input_ids": 1, "packed_indices": 2, "exact_values": 2, "coeffs": 2}
"""The columns of both forms, and how deep their lists are."""

MASK_COLUMN = "attention_mask"
"""Of packed rows: the number of each token's document."""


class DistillKit(SequenceImporter):
    """A DistillKit capture: Parquet files of input_ids and compressed log-probabilities."""

    patterns: ClassVar[tuple[str, ...]] = ("*.parquet",)

    compression: Polynomial | Legacy
    """The configuration that the logits were captured with."""

    @model_validator(mode="before")
    @classmethod
    def _size_of(cls, data: Any) -> Any:
        """The vocabulary's size is that of the compression, unless it is given and differs."""
        compression = data.get("compression") if isinstance(data, dict) else None
        if isinstance(compression, Polynomial | Legacy):
            if data.get("size", compression.size) != compression.size:
                raise ValueError(f"size {data['size']} is not the config's {compression.size}")
            return {**data, "size": compression.size}
        return data

    @property
    def width(self) -> int:
        return self.compression.k

    @property
    def _columns(self) -> Mapping[str, int]:
        return LEGACY if isinstance(self.compression, Legacy) else POLYNOMIAL

    def spec(self, source: Source) -> Spec:
        wanted, form = self._columns, "legacy" if isinstance(self.compression, Legacy) else "polynomial"
        for name in source.files:
            found = parquet_columns(source, name, {**wanted, MASK_COLUMN: 1})
            if missing := [column for column in wanted if column not in found]:
                raise ConfigError(
                    f"{source.where(name)} has no column {missing[0]!r}, which DistillKit's {form} form has, "
                    f"but {', '.join(sorted(found))}: give the config of this capture"
                )
        compression = {"form": form, **self.compression.model_dump(mode="json")}
        return self.specified("distillkit", source, compression=compression)

    def units(self, source: Source) -> Iterator[Unit]:
        for name in source.files:
            yield from parquet_units(source, name)

    def sequences(self, source: Source, unit: Unit) -> Iterator[tuple[str, Sequence | str]]:
        for part in unit.slices:
            packed = MASK_COLUMN in parquet_columns(source, part.url, {})
            columns = [*self._columns, MASK_COLUMN] if packed else list(self._columns)
            for number, cells in parquet_rows(source, part, columns):
                key = f"{part.url}#{number}"
                try:
                    ids, values = self.compression.decode(cells)
                    documents = whole_numbers(cells, MASK_COLUMN) if packed else None
                    mask = np.ones(len(ids), dtype=bool)
                    yield key, Sequence(whole_numbers(cells, "input_ids"), ids, values, mask, documents)
                except BadCell as error:
                    yield key, str(error)


def compression_of(text: str, where: str) -> Polynomial | Legacy:
    """The compression in a YAML or JSON text: DistillKit's own compression_config.yaml, or a run's config.

    Raises ConfigError that names the file and the key.
    """
    import yaml
    from pydantic import ValidationError

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    if isinstance(data, dict) and isinstance(data.get("teacher"), dict):
        data = data["teacher"]
    forms: dict[str, type[BaseModel]] = {"logprob_compressor": Polynomial, "legacy_logit_compression": Legacy}
    given = [name for name in forms if isinstance(data, dict) and data.get(name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{where} has both {' and '.join(given)}: leave the one of this capture")
    model: type[BaseModel] = Polynomial
    if given:
        data, model = data[given[0]], forms[given[0]]
    elif isinstance(data, dict) and "vocab_size" in data:
        model = Legacy
    try:
        found = model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(item) for item in first["loc"])
        raise ConfigError(f"{where}: {key + ': ' if key else ''}{first['msg']}") from error
    assert isinstance(found, Polynomial | Legacy)
    return found
