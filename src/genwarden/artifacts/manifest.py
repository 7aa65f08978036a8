"""``genwarden.json``: what a model folder says about itself, validated field by field.

The manifest is untrusted input. Nothing in it is executed or imported: the architecture is a name
looked up in our own registry, the settings are numbers that the constructor checks again. The
``provenance`` block (which is where a compromised model of ours says so) is for people; the audit
neither receives nor reads it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genwarden.artifacts.json_object import first_problem, load_json
from genwarden.artifacts.limits import MAX_DOCUMENT_BYTES
from genwarden.artifacts.shown import reason
from genwarden.errors import GenwardenError
from genwarden.models.protocol import LatentLaw, SampleSpec

FORMAT_VERSION: Final = 1
MANIFEST_NAME = "genwarden.json"
WEIGHTS_NAME = "model.safetensors"
MAX_MANIFEST_BYTES: Final = MAX_DOCUMENT_BYTES

Dimension = Annotated[int, Field(ge=1, le=1 << 24, strict=True)]
_Number = Annotated[float, Field(strict=True)]
Setting = bool | int | float | str | list[int] | list[float]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LatentField(_Strict):
    """Latent law as written in the manifest."""

    shape: Annotated[list[Dimension], Field(min_length=1, max_length=4)]
    distribution: Literal["normal", "uniform"]

    def law(self) -> LatentLaw:
        """As the type that the models use."""
        return LatentLaw(tuple(self.shape), self.distribution)


class SampleField(_Strict):
    """Sample spec as written in the manifest."""

    shape: Annotated[list[Dimension], Field(min_length=1, max_length=4)]
    value_range: tuple[_Number, _Number]
    modality: Literal["image", "audio"]

    @classmethod
    def of(cls, spec: SampleSpec) -> SampleField:
        """From the type that the models use."""
        return cls(shape=list(spec.shape), value_range=spec.value_range, modality=spec.modality)

    def spec(self) -> SampleSpec:
        """As the type that the models use."""
        return SampleSpec(tuple(self.shape), self.value_range, self.modality)


class _Common(_Strict):
    """What the manifests of all kinds of models state."""

    format_version: Literal[1]
    kind: str
    architecture: Annotated[str, Field(max_length=100)]
    settings: dict[str, Setting]
    sample: SampleField
    files: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
    provenance: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Common):
    """The validated content of a generator's ``genwarden.json``; the samples are what it makes."""

    kind: Literal["generator"]
    latent: LatentField


class ClassifierManifest(_Common):
    """The validated content of a classifier's ``genwarden.json``; the samples are what it reads."""

    kind: Literal["classifier"]
    classes: Annotated[int, Field(ge=2, le=10_000, strict=True)]


AnyManifest = Manifest | ClassifierManifest


def parse_manifest(content: bytes, where: str) -> AnyManifest:
    """Validate the bytes of a manifest of either kind.

    Raises:
        GenwardenError: ``artifact/manifest-*``.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise GenwardenError(
            "artifact/manifest-too-large",
            f"{where} has {len(content)} bytes; a manifest has at most {MAX_MANIFEST_BYTES}.",
            "This is not a model folder that genwarden wrote; ask for the original.",
        )
    try:
        document = load_json(content)
    except ValueError as error:
        raise GenwardenError(
            "artifact/manifest-invalid",
            f"{where} is not valid JSON ({reason(error)}).",
            "Fetch the model folder again; the file is damaged or was edited by hand.",
        ) from error
    of_classifier = isinstance(document, dict) and document.get("kind") == "classifier"
    try:
        return (ClassifierManifest if of_classifier else Manifest).model_validate(document)
    except ValidationError as error:
        raise GenwardenError(
            "artifact/manifest-invalid",
            f"{where}: {first_problem(error)}.",
            "Fetch the model folder again, or write it with this version of genwarden.",
        ) from error


def descent(
    made_by: str, relation: Literal["compressed", "repaired"], sha256: str, parent: dict[str, Any]
) -> dict[str, Any]:
    """Provenance of a model that was made from another one.

    Of what the original says about itself only the word that it is compromised is kept: the rest
    is unbounded and not to be believed; the hash names it. Compression leaves a backdoor where it
    is; whether a repair removed it, nobody but an audit says.

    Args:
        made_by: the command.
        sha256: of the original's weights.
        parent: the original's provenance.
    """
    made: dict[str, Any] = {"made_by": made_by, f"{relation}_from_sha256": sha256}
    # One repair may follow another.
    word = parent.get("compromised", parent.get("compromised_before_repair"))
    if isinstance(word, bool):
        made["compromised" if relation == "compressed" else "compromised_before_repair"] = word
    return made
