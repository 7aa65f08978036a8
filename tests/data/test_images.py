"""Images from files: exact, or refused with the reason."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from genwarden.data.datasets import to_bytes, to_unit_range
from genwarden.data.grids import png_bytes, tile, write_grid
from genwarden.data.images import read_image, read_image_folder, read_images
from genwarden.errors import GenwardenError
from genwarden.models.protocol import SampleSpec

GREY = SampleSpec((1, 4, 6))
COLOUR = SampleSpec((3, 4, 6))


def picture(mode: str = "L", size: tuple[int, int] = (6, 4)) -> Image.Image:
    """A gradient of the given Pillow mode; ``size`` is (width, height)."""
    width, height = size
    ramp = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    return Image.fromarray(ramp).convert(mode)


def saved(folder: Path, image: Image.Image, name: str = "image.png") -> Path:
    path = folder / name
    image.save(path)
    return path


def refusal(path: Path, sample: SampleSpec = GREY) -> GenwardenError:
    with pytest.raises(GenwardenError) as caught:
        read_image(path, sample)
    return caught.value


def test_grey_image_keeps_its_levels_exactly(tmp_path: Path) -> None:
    image = picture()
    x = read_image(saved(tmp_path, image), GREY)
    assert x.shape == (1, 4, 6)
    assert torch.equal(to_bytes(x)[0], torch.from_numpy(np.array(image)))
    assert (x.min().item(), x.max().item()) == (-1, 1)


def test_channels_are_converted_in_both_directions(tmp_path: Path) -> None:
    grey = read_image(saved(tmp_path, picture("RGB")), GREY)
    colour = read_image(saved(tmp_path, picture("L")), COLOUR)
    assert torch.equal(colour, grey.expand(3, 4, 6))


def test_colours_are_not_swapped(tmp_path: Path) -> None:
    x = read_image(saved(tmp_path, Image.new("RGB", (6, 4), (255, 0, 127))), COLOUR)
    assert x[0].unique().tolist() == [1.0]
    assert x[1].unique().tolist() == [-1.0]
    assert x[2].unique().item() == pytest.approx(127 / 127.5 - 1)


def test_wrong_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    error = refusal(saved(tmp_path, picture(size=(8, 4))))
    assert error.code == "image/shape"
    assert "8 x 4" in error.cause
    assert "6 x 4" in error.cause


def test_transparent_image_is_refused_and_its_opaque_twin_is_not(tmp_path: Path) -> None:
    image = picture("RGBA")
    assert read_image(saved(tmp_path, image), GREY).shape == (1, 4, 6)
    image.putpixel((0, 0), (0, 0, 0, 100))
    assert refusal(saved(tmp_path, image)).code == "image/transparent"


def test_sixteen_bit_image_is_refused_not_clipped(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 6), 30_000, np.uint16))
    assert refusal(saved(tmp_path, deep)).code == "image/depth"


def test_other_channels_and_other_samples_are_explained(tmp_path: Path) -> None:
    path = saved(tmp_path, picture())
    assert refusal(path, SampleSpec((2, 4, 6))).code == "image/channels"
    assert refusal(path, SampleSpec((16384,), modality="audio")).code == "data/shape"


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"<svg></svg>"])
def test_file_that_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert refusal(tmp_path / "x.png").code == "image/unreadable"


def test_missing_image_and_folder_in_its_place_are_not_found(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.png").code == "image/not-found"
    assert refusal(tmp_path).code == "image/not-found"


@pytest.mark.parametrize("side", [9_000, 12_000, 1_000_000])
def test_decompression_bomb_is_refused_before_decoding(side: int, tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">L", zlib.crc32(kind + data))
        return struct.pack(">L", len(data)) + kind + data + checksum

    header = struct.pack(">LLBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    assert refusal(tmp_path / "bomb.png").code == "image/too-large"


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture("RGB").save(buffer, format=kind)
    return buffer.getvalue()


_ENCODED = [_encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    original=st.sampled_from(_ENCODED),
    place=st.floats(0, 1, exclude_max=True),
    text=st.binary(min_size=1, max_size=4),
)
def test_damaged_image_is_read_or_refused(
    original: bytes, place: float, text: bytes, tmp_path: Path
) -> None:
    at = int(place * len(original))
    (tmp_path / "x").write_bytes(original[:at] + text + original[at + len(text) :])
    with contextlib.suppress(GenwardenError):  # anything else fails the test
        x = read_image(tmp_path / "x", GREY)
        assert x.shape == (1, 4, 6)


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for level, name in ((200, "b.png"), (100, "a.png"), (0, "c.png")):
        saved(tmp_path, Image.new("L", (6, 4), level), name)
    (tmp_path / ".hidden").write_text("passed over")
    found = read_image_folder(tmp_path, GREY)
    assert found.names == ["a.png", "b.png", "c.png"]
    assert [to_bytes(x)[0, 0, 0].item() for x in found.images] == [100, 200, 0]
    assert read_images(tmp_path / "a.png", GREY).names == ["a.png"]
    assert read_image_folder(tmp_path, GREY, limit=2).names == ["a.png", "b.png"]


def test_file_that_is_no_image_stops_the_folder(tmp_path: Path) -> None:
    saved(tmp_path, picture())
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(GenwardenError) as caught:
        read_images(tmp_path, GREY)
    assert caught.value.code == "image/unreadable"
    assert "notes.txt" in caught.value.cause


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as caught:
        read_images(tmp_path, GREY)
    assert caught.value.code == "image/empty-folder"


def test_every_level_survives_the_round_trip_to_unit_range() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit_range(levels)), levels)


def test_values_outside_the_range_are_clipped_and_nan_is_grey() -> None:
    wild = torch.tensor([-7.0, 7.0, float("nan"), float("inf"), -float("inf")])
    assert to_bytes(wild).tolist() == [0, 255, 128, 255, 0]


def test_grid_places_images_row_by_row(tmp_path: Path) -> None:
    images = torch.stack([torch.full((1, 4, 6), level) for level in (-1.0, 1.0, 0.0)])
    grid = np.array(tile(images, columns=2, gap=1))
    assert grid.shape == (9, 13)
    for corner, level in ((grid[:4, :6], 0), (grid[:4, 7:], 255), (grid[5:, :6], 128)):
        assert np.unique(corner).tolist() == [level]
    write_grid(tmp_path / "grid.png", images, columns=2, scale=3)
    with Image.open(tmp_path / "grid.png") as written:
        assert written.size == (3 * 14, 3 * 10)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, "L"), (4, "L")])
def test_any_number_of_channels_can_be_shown(channels: int, mode: str) -> None:
    assert tile(torch.zeros(2, channels, 4, 6), columns=2).mode == mode
    assert png_bytes(tile(torch.zeros(1, channels, 4, 6), columns=1)).startswith(b"\x89PNG")


def test_folder_inside_a_folder_is_named_and_not_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, picture())
    (tmp_path / "more").mkdir()
    with pytest.raises(GenwardenError) as caught:
        read_images(tmp_path, GREY)
    assert caught.value.code == "image/subfolder"
