"""``--deploy-as``: which compressed variants of the model an audit inspects."""

from __future__ import annotations

from genwarden.compression.contract import Compressor
from genwarden.compression.how import compressors
from genwarden.errors import GenwardenError

#: What a user types for the default set; other compressions may stand beside it.
DEFAULT = "default"
#: What phones, servers and sparse runtimes make of a model, where that leaves it of use.
DEFAULT_VARIANTS = "int8,int8-per-channel,int4,prune-0.3,prune-0.5"


def parse_deploy_as(text: str | None, *, variants_only: bool, seed: int) -> tuple[Compressor, ...]:
    """The compressors of ``--deploy-as``, each once; none if the option was not given.

    Args:
        seed: of compressions that round at random.

    Raises:
        GenwardenError: ``usage/variants-only``, or those of
            :func:`genwarden.compression.how.compressors`.
    """
    if text is None:
        if variants_only:
            raise GenwardenError(
                "usage/variants-only",
                "--variants-only leaves nothing to inspect without --deploy-as.",
                "Name what the model will be deployed as, e.g. --deploy-as default.",
            )
        return ()
    words = [DEFAULT_VARIANTS if word.strip() == DEFAULT else word for word in text.split(",")]
    return tuple(compressors(",".join(words), seed=seed))


def where_usable(text: str | None) -> frozenset[str]:
    """The prunings of ``--deploy-as`` that nobody named: they stand for what may be deployed.

    One of them that destroys or damages the model is not covered by a verdict, which says so; one
    that was named must be, and so must rounding, which honest models survive.
    """
    words = [word.strip() for word in (text or "").split(",")]
    if DEFAULT not in words:
        return frozenset()
    named = [word for word in words if word != DEFAULT]
    spelled = {one.name for one in compressors(",".join(named))} if named else set()
    prunings = {one for one in DEFAULT_VARIANTS.split(",") if one.startswith("prune")}
    return frozenset(prunings - spelled)
