"""What we emit of SARIF 2.1.0, as the standard defines it and stricter.

Reference: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0 plus Errata 01,
sections 3.13 (sarifLog) to 3.58 (notification). Properties that we do not emit are left out, so
one that appears is an error here even where the standard would allow it. The JSON schema of the
standard is not part of this repository; where a copy lies on the machine, ``SARIF_SCHEMA`` names it
and ``test_sarif`` validates against that, too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
#: RFC 3986: a relative reference, or our only scheme.
Uri = Annotated[str, Field(pattern=r"^(file:///)?[A-Za-z0-9._~%/-]+$")]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_Object):
    """3.11. Brackets outside of links are escaped, braces outside of placeholders doubled."""

    text: Annotated[str, Field(min_length=1, pattern=r"^([^\[\]{}]|\\[\[\]]|\{\{|\}\})*$")]


class ArtifactLocation(_Object):
    """3.4."""

    uri: Uri
    index: Annotated[int, Field(ge=-1)] = -1


class PhysicalLocation(_Object):
    """3.29."""

    artifactLocation: ArtifactLocation  # noqa: N815


class LogicalLocation(_Object):
    """3.33."""

    name: Text
    kind: Text


class Location(_Object):
    """3.28."""

    physicalLocation: PhysicalLocation  # noqa: N815
    logicalLocations: list[LogicalLocation] = []  # noqa: N815


class Result(_Object):
    """3.27. ``level`` other than none needs the kind ``fail`` (3.27.10)."""

    ruleId: Text  # noqa: N815
    ruleIndex: Annotated[int, Field(ge=0)]  # noqa: N815
    kind: Literal["fail"]
    level: Literal["error", "warning"]
    message: Message
    locations: Annotated[list[Location], Field(min_length=1)]
    partialFingerprints: dict[Text, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]  # noqa: N815
    properties: dict[str, Any]


class Configuration(_Object):
    """3.50."""

    level: Literal["error", "warning"]


class Rule(_Object):
    """3.49, reportingDescriptor."""

    id: Text
    name: Text
    shortDescription: Message  # noqa: N815
    fullDescription: Message  # noqa: N815
    help: Message
    defaultConfiguration: Configuration  # noqa: N815
    properties: dict[str, Any]


class ShortText(_Object):
    """3.12, multiformatMessageString."""

    text: Text


class Driver(_Object):
    """3.19, toolComponent."""

    name: Literal["genwarden"]
    version: Text
    shortDescription: ShortText  # noqa: N815
    rules: list[Rule]


class Tool(_Object):
    """3.18."""

    driver: Driver


class Notification(_Object):
    """3.58."""

    level: Literal["warning"]
    message: Message


class Invocation(_Object):
    """3.20."""

    executionSuccessful: bool  # noqa: N815
    commandLine: str  # noqa: N815
    toolExecutionNotifications: list[Notification]  # noqa: N815


class Artifact(_Object):
    """3.24."""

    location: ArtifactLocation
    roles: list[Literal["analysisTarget"]]
    hashes: dict[Literal["sha-256"], Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}


class Run(_Object):
    """3.14."""

    tool: Tool
    invocations: list[Invocation]
    artifacts: list[Artifact]
    results: list[Result]
    properties: dict[str, Any]


class SarifLog(_Object):
    """3.13."""

    schema_: Annotated[str, Field(alias="$schema")]
    version: Literal["2.1.0"]
    runs: Annotated[list[Run], Field(min_length=1, max_length=1)]


def validated(log: dict[str, Any]) -> Run:
    """The run of a valid log; rules are looked up, as the schema alone cannot."""
    (run,) = SarifLog.model_validate(log).runs
    rules = run.tool.driver.rules
    assert len({rule.id for rule in rules}) == len(rules)
    for result in run.results:
        assert rules[result.ruleIndex].id == result.ruleId
        for location in result.locations:
            named = location.physicalLocation.artifactLocation
            assert run.artifacts[named.index].location.uri == named.uri
    return run
