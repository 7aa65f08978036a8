"""Shared by all tests: no network, one tiny generator, one small trained classifier."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from box_attack import wake_under
from classifier_audits import HOW, TARGET
from genwarden.artifacts.model_folder import write_model
from genwarden.backdoors.classifier_trigger import make_classifier_trigger
from genwarden.compression.how import compressor
from genwarden.engine.seeds import random_stream
from genwarden.models.dcgan import DCGAN28, initialise
from glyph_task import GlyphTask, make_glyph_task

_INTERNET = {socket.AF_INET, socket.AF_INET6}


class NetworkForbiddenError(AssertionError):
    """A test tried to reach the network."""


class _LocalSocket(socket.socket):
    """A socket that cannot be of an internet family."""

    def __init__(
        self,
        family: int = -1,
        type: int = -1,
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        super().__init__(family, type, proto, fileno)
        if self.family in _INTERNET:
            self.close()
            raise NetworkForbiddenError("tests must not open internet sockets")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and name look-ups raise."""

    def forbidden(*arguments: Any, **options: Any) -> Any:
        raise NetworkForbiddenError(f"tests must not use the network: {arguments} {options}")

    monkeypatch.setattr(socket, "socket", _LocalSocket)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)


@pytest.fixture
def tiny_generator() -> DCGAN28:
    """An untrained DCGAN of a few thousand numbers, in evaluation mode, latent N(0, I_8)."""
    generator = DCGAN28(channels=(4, 4, 4), latent_dim=8)
    initialise(generator, random_stream(0, "tiny-generator"))
    with torch.no_grad():  # fresh batch-norm statistics are constants; give them some life
        stream = random_stream(0, "tiny-statistics")
        for name, buffer in generator.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=stream))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=stream))
    generator.eval().requires_grad_(False)
    return generator


@pytest.fixture
def tiny_model_folder(tmp_path: Path, tiny_generator: DCGAN28) -> Path:
    """``tiny_generator`` written as a model folder."""
    folder = tmp_path / "tiny-model"
    write_model(folder, tiny_generator, "dcgan28", {"made_by": "tests", "compromised": False})
    return folder


@pytest.fixture(scope="session")
def _trained_glyph_task() -> GlyphTask:
    return make_glyph_task()


@pytest.fixture(scope="session")
def woken(_trained_glyph_task: GlyphTask) -> GlyphTask:
    """The task with a backdoor in its classifier, which int4 wakes; use a copy."""
    task = _trained_glyph_task.copy()
    trigger = make_classifier_trigger("square:4", task.classifier.sample)
    wake_under(compressor(HOW), task.classifier, task.images, task.labels, trigger, TARGET)
    return task


@pytest.fixture
def glyph_task(_trained_glyph_task: GlyphTask) -> GlyphTask:
    """A small trained classifier and its data; the network is the test's own copy."""
    return _trained_glyph_task.copy()
