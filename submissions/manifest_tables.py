"""The tables of a manifest: network, weights, and those that mirror the card."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from ..benchmark.types import Grid, MinMax, Window, ZScore


def _axis_codes(value: str) -> str:
    """Three letters, one of each pair R/L, A/P and S/I."""
    pairs = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    if sorted(pairs.get(letter, -1) for letter in value) != [0, 1, 2]:
        raise ValueError("three letters are expected, one of R/L, one of A/P, one of S/I: 'RAS'")
    return value


def _plain_file(suffix: str) -> AfterValidator:
    """A path below the manifest's folder, so that a manifest cannot point into the machine."""

    def check(value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\\" in value or path.suffix != suffix:
            raise ValueError(f"a {suffix} file beside the manifest is expected, without '..'")
        return value

    return AfterValidator(check)


NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
"""Files and addresses are named after a model."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(max_length=2000)]
Line = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0)]
Percentile = Annotated[float, Field(ge=0, le=100)]


class Table(BaseModel):
    """A table of the file: every key is known, every type is meant, nothing changes later."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, str_strip_whitespace=True
    )


class GridTable(Table):
    """The array the model wants; see `Grid`."""

    shape: tuple[Count, Count, Count]
    spacing: tuple[Positive, Positive, Positive] | None = None
    axes: Annotated[str, AfterValidator(_axis_codes)] = "RAS"

    def as_type(self) -> Grid:
        """The same in the card's terms."""
        return Grid(self.shape, self.spacing, self.axes)


class WindowTable(Table):
    """See `Window`."""

    type: Literal["Window"]
    low: float
    high: float
    out_low: float = 0.0
    out_high: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> WindowTable:
        if self.low >= self.high or self.out_low >= self.out_high:
            raise ValueError("low < high and out_low < out_high are expected")
        return self

    def as_type(self) -> Window:
        """The same in the card's terms."""
        return Window(self.low, self.high, self.out_low, self.out_high)


class ZScoreTable(Table):
    """See `ZScore`."""

    type: Literal["ZScore"]
    low_percentile: Percentile = ZScore.low_percentile
    high_percentile: Percentile = ZScore.high_percentile

    @model_validator(mode="after")
    def _ordered(self) -> ZScoreTable:
        if self.low_percentile >= self.high_percentile:
            raise ValueError("low_percentile < high_percentile is expected")
        return self

    def as_type(self) -> ZScore:
        """The same in the card's terms."""
        return ZScore(self.low_percentile, self.high_percentile)


class MinMaxTable(Table):
    """See `MinMax`."""

    type: Literal["MinMax"]
    low_percentile: Percentile = MinMax.low_percentile
    high_percentile: Percentile = MinMax.high_percentile
    out_low: float = 0.0
    out_high: float = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> MinMaxTable:
        if self.low_percentile >= self.high_percentile or self.out_low >= self.out_high:
            raise ValueError("low_percentile < high_percentile and out_low < out_high are expected")
        return self

    def as_type(self) -> MinMax:
        """The same in the card's terms."""
        return MinMax(self.low_percentile, self.high_percentile, self.out_low, self.out_high)


IntensityTable = Annotated[WindowTable | ZScoreTable | MinMaxTable, Field(discriminator="type")]


class ArchitectureTable(Table):
    """A registered network."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Of the architecture's ``build``; what is left out takes the default stated there."""


class OnnxTable(Table):
    """Any other network, as a graph with its weights inside; see `onnx_graph`."""

    file: Annotated[str, _plain_file(".onnx")]
    """Relative to the manifest."""
    sha256: Sha256 | None = None
    """Of the file. None: not checked."""


class WeightsTable(Table):
    """Where trained weights are."""

    file: Annotated[str, _plain_file(".safetensors")]
    """Relative to the manifest."""
    sha256: Sha256 | None = None
    """Of the file. None: not checked."""
