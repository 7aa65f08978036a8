"""Hostile folders: generators', classifiers' and diffusers'. C-12, C-15 to C-17, R-7 and R-8."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from catalogue import Case, Form, bound
from hostile_containers import contents
from hostile_safetensors import ODD_JSON
from safetensors.torch import load, save

from genwarden.artifacts.classifier_folder import write_classifier
from genwarden.artifacts.diffusers_folder import write_diffusion
from genwarden.artifacts.manifest import MANIFEST_NAME, WEIGHTS_NAME
from genwarden.artifacts.model_folder import write_model
from genwarden.engine.files import sha256_bytes
from genwarden.models.classifiers.small_cnn import SmallCNN
from genwarden.models.dcgan import DCGAN28
from genwarden.models.diffusion.networks import fresh_model, small_unet
from genwarden.models.diffusion.schedule import NoiseSchedule

Change = Callable[[Path], object]
CONFIG = "unet/config.json"
UNET = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
INDEX = "model_index.json"
FORMS: tuple[Form, ...] = ("generator folder", "classifier folder", "diffusers folder")


@functools.cache
def template(form: Form) -> Path:
    """A sound folder, written once; the directory goes with the process."""
    holder = tempfile.mkdtemp(prefix="genwarden-template-")
    atexit.register(shutil.rmtree, holder, ignore_errors=True)
    folder = Path(holder) / "model"
    torch.manual_seed(0)
    if form == "generator folder":
        write_model(folder, DCGAN28((2, 2, 2), 4).eval(), "dcgan28", {"compromised": False})
    elif form == "classifier folder":
        write_classifier(folder, SmallCNN().eval(), "small-cnn", {})
    else:
        config = small_unet(4, 1, (4, 4), middle_attention=False, norm_groups=2)
        model = fresh_model(config, NoiseSchedule.linear(8, 1e-3, 0.4), torch.Generator())
        write_diffusion(folder, model.eval(), {})
        forget_hashes(folder)
    return folder


def fresh(form: Form, folder: Path) -> Path:
    """A copy of the sound folder."""
    path = folder / "model"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template(form), path)
    return path


def folder_cases() -> Iterator[Case]:
    """Every case of this module."""
    yield from _json()
    yield from _manifests()
    yield from _weights()
    yield from _files()
    yield from _configurations()
    yield from _schedulers()
    yield from _indices()
    yield from _code()
    yield from _skipped()


def _case(
    attack: str,
    form: Form,
    what: str,
    variant: object,
    code: str,
    change: Change,
    exit_code: int = 2,
) -> Case:
    def write(folder: Path) -> Path:
        path = fresh(form, folder)
        change(path)
        return path

    return Case(attack, form, what, str(variant), f"artifact/{code}", write, exit_code)


def forget_hashes(folder: Path) -> None:
    """Make a diffusers folder of ours one of other software, whose parts may be changed."""
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text("utf-8"))
    del document["files"]
    path.write_text(json.dumps(document), "utf-8")


def edit(path: Path, **changes: Any) -> None:
    """Replace top-level values of a JSON object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_deep(path: Path, keys: str, value: Any) -> None:
    """Replace a value by a dotted name; ``...`` as value removes it."""
    document = json.loads(path.read_text())
    inner = document
    *outer, last = keys.split("/")
    for key in outer:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(document))


def documents(form: Form) -> list[tuple[str, str]]:
    """The JSON documents of a folder, with the code for one that is no JSON."""
    if form == "diffusers folder":
        return [(CONFIG, "bad-json"), (SCHEDULER, "bad-json"), (INDEX, "bad-json")]
    return [(MANIFEST_NAME, "manifest-invalid")]


def spoilt(document: str, text: str) -> str:
    """A document with an oddity of :data:`ODD_JSON` in it, in front of its own content."""
    inner = json.dumps(json.loads(document))
    body = inner.strip()[1:-1]
    if text.startswith("{") and text.endswith("}") and "@" in text:
        return "{" + text[1:-1].replace("@", "1") + "," + body + "}"
    return text.replace("@", inner)


#: Odd in a safetensors header and fine in a document, or (NaN) written by diffusers itself.
_FINE_ELSEWHERE = {"a fraction", "an exponent", "a large exponent", "NaN", "Infinity", "-Infinity"}


def _json() -> Iterator[Case]:
    """C-5 of documents: what parsers read differently; and C-9: bombs."""
    bombs = {
        "nested lists": "[" * 100_000,
        "nested tables": '{"a":' * 100_000,
        "nested and closed": '{"a":' + "[" * 60 + "]" * 60 + "}",
        "a hundred thousand values": '{"a":[' + "1," * 100_001 + "1]}",
        "a list": "[]",
        "a number": "1",
        "a text": '"{}"',
        "null": "null",
        "only spaces": "   ",
    }
    for form in FORMS:
        for document, code in documents(form):
            for what, text in {**ODD_JSON, **bombs}.items():
                if what in _FINE_ELSEWHERE or (
                    what == "a hundred thousand values" and form == "diffusers folder"
                ):
                    continue
                yield _case(
                    "C-5", form, f"{document} that parsers read differently", what, code,
                    bound(lambda d, t, p: (p / d).write_text(
                        spoilt((p / d).read_text(), t), encoding="utf-8"
                    ), document, text),
                )  # fmt: skip
            for coding in ("utf-16", "utf-32", "utf-8-sig", "utf-7"):
                if coding == "utf-7":
                    raw: bytes = b'{"+AGE-":"\xff"}'
                    yield _case(
                        "C-5", form, f"{document} in another coding", coding, code,
                        bound(lambda d, r, p: (p / d).write_bytes(r), document, raw),
                    )  # fmt: skip
                    continue
                yield _case(
                    "C-5", form, f"{document} in another coding", coding, code,
                    bound(lambda d, c, p: (p / d).write_bytes(
                        (p / d).read_text().encode(c)
                    ), document, coding),
                )  # fmt: skip
            yield _case(
                "C-9", form, f"{document} of two megabytes", "spaces", "too-large",
                bound(lambda d, p: (p / d).write_text(" " * (2 << 20)), document),
            )  # fmt: skip
            yield _case(
                "C-8", form, f"{document} is empty", "", "empty",
                bound(lambda d, p: (p / d).write_bytes(b""), document),
            )  # fmt: skip


def _manifests() -> Iterator[Case]:
    """R-7 and C-15: every field of a manifest with what it must not be."""
    wrong: dict[str, list[Any]] = {
        "format_version": [0, 2, "1", None, [], {}, 1.5, 10**30, ...],
        "kind": ["", "Generator", None, 1, [], {"_target_": "os.system"}, "diffusion", ...],
        "architecture": [None, 1, [], {}, "x" * 101, ...],
        "settings": [None, 1, [], "x", {"a": None}, {"a": {}}, {"a": {"_target_": "os.system"}},
        {"a": [[1]]}, ...],
        "sample": [None, 1, [], "x", {}, ...],
        "sample/shape": [None, 1, [], "x", [0], [-1], [1.5], [1 << 25], [1] * 5, ["1"], [None],
        [10**30], ...],
        "sample/value_range": [None, 1, [], [1], [1, 2, 3], ["a", "b"], ...],
        "sample/modality": [None, 1, "video", "", [], "IMAGE", ...],
        "files": [None, 1, [], "x", {WEIGHTS_NAME: 1}, {WEIGHTS_NAME: "0" * 63},
        {WEIGHTS_NAME: "G" * 64}, {WEIGHTS_NAME: "0" * 64 + "\n"}, ...],
        "provenance": [None, 1, [], "x"],
        "extra": [1, "x", {"_target_": "os.system"}],
        "__class__": ["os.system"],
        "_target_": ["os.system"],
        "auto_map": [{"AutoModel": "evil.Evil"}],
        "trust_remote_code": [True],
    }  # fmt: skip
    only: dict[Form, dict[str, list[Any]]] = {
        "generator folder": {
            "latent": [None, 1, [], "x", {}, ...],
            "latent/shape": [None, 1, [], [0], [-1], [1 << 30], [1] * 5, ["x"], ...],
            "latent/distribution": [None, 1, "cauchy", "", [], "os.system", ...],
        },
        "classifier folder": {
            "classes": [None, 0, 1, -1, 10_001, "x", [], 2.5, 10**30, ...],
            "latent": [{}, None],
        },
    }
    for form in ("generator folder", "classifier folder"):
        for key, values in {**wrong, **only[form]}.items():
            for place, value in enumerate(values):
                yield _case(
                    "C-15", form, f"a manifest with another {key}", f"{place}: {str(value)[:40]}",
                    "manifest-invalid",
                    bound(lambda k, v, p: edit_deep(p / MANIFEST_NAME, k, v), key, value),
                )  # fmt: skip
        for name in (
            "", "os:system", "os.system", "genwarden.models.dcgan:DCGAN28", "__import__", "DCGAN28",
            "dcgan28 ", "../dcgan28", "\x1b[2J", "<script>", "subprocess:Popen", "ddpm", "unet2d",
        ):  # fmt: skip
            yield _case(
                "C-15", form, "an architecture that is no row of ours", repr(name),
                "unknown-architecture",
                bound(lambda n, p: edit(p / MANIFEST_NAME, architecture=n), name),
            )  # fmt: skip
        for names in (
            ["../model.safetensors"], ["/etc/passwd"], [], [WEIGHTS_NAME, "evil.py"],
            ["model.pkl"], ["MODEL.safetensors"], ["sub/model.safetensors"], ["\x1b[2J"],
        ):  # fmt: skip
            yield _case(
                "C-16", form, "a manifest that lists other files", names, "manifest-files",
                bound(lambda n, p: edit(p / MANIFEST_NAME, files=dict.fromkeys(n, "0" * 64)),
                names),
            )  # fmt: skip
    settings: dict[str, list[Any]] = {
        "channels": [[0, 1, 1], [-1, 2, 2], [], [2, 2], "x", 5, [1 << 40] * 3, [2.5, 2, 2]],
        "latent_dim": [0, -1, "x", [], 1 << 40, 2.5],
        "unknown": [1, "x"],
        "self": [1],
        "__class__": ["x"],
    }
    for key, values in settings.items():
        for value in values:
            fits_not = value in ([0, 1, 1], 0, 1 << 40)  # a network, but not of these weights
            yield _case(
                "C-9", "generator folder", f"a setting {key} that cannot be", value,
                "wrong-architecture" if fits_not else "bad-settings",
                bound(lambda k, v, p: edit_deep(p / MANIFEST_NAME, f"settings/{k}", v), key, value),
            )  # fmt: skip


def _weights() -> Iterator[Case]:
    """C-12 and C-8: weights that do not match, or are something else."""
    for form in FORMS:
        own = UNET if form == "diffusers folder" else WEIGHTS_NAME
        if form != "diffusers folder":
            for byte in range(0, 400, 8):
                yield _case(
                    "C-12", form, "weights changed after the manifest", f"byte {byte}",
                    "hash-mismatch", bound(lambda o, b, p: _flip(p / o, 8 * b), own, byte),
                )  # fmt: skip
            yield _case(
                "C-12", form, "a manifest of other weights", "", "hash-mismatch",
                lambda p: edit(p / MANIFEST_NAME, files={WEIGHTS_NAME: "0" * 64}),
            )  # fmt: skip
        for what, (_, code, content) in contents().items():
            if form == "diffusers folder" and code not in {"html-page", "lfs-pointer"}:
                code = {"zip-refused": "pickled-weights"}.get(code, code)
            yield _case(
                "C-4", form, "weights of another format", what, code,
                bound(lambda o, c, p: _replace_weights(p, o, c), own, content),
            )  # fmt: skip
        for what, change in _state_changes().items():
            yield _case(
                "C-9", form, "weights that do not fit", what, "wrong-architecture",
                bound(lambda o, c, p: _replace_weights(
                    p, o, save(c(load((p / o).read_bytes())))
                ), own, change),
            )  # fmt: skip


def _state_changes() -> dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]:
    def first(state: dict[str, torch.Tensor]) -> str:
        return next(iter(sorted(state)))

    return {
        "one tensor less": lambda s: {k: v for k, v in s.items() if k != first(s)},
        "one tensor more": lambda s: s | {"\x1b[2J<script>": torch.ones(1)},
        "another shape": lambda s: s | {first(s): torch.ones(7, 7, 7)},
        "another kind of number": lambda s: s | {first(s): torch.ones(s[first(s)].shape).long()},
        "another name": lambda s: {f"../{k}": v for k, v in s.items()},
        "an empty tensor": lambda s: s | {first(s): torch.ones(0)},
    }


def _flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def _replace_weights(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if name == WEIGHTS_NAME:
        edit(folder / MANIFEST_NAME, files={WEIGHTS_NAME: sha256_bytes(content)})


def _files() -> Iterator[Case]:
    """C-16: links, pipes and folders in the place of files."""

    def symlink(path: Path) -> None:
        path.rename(path.parent.parent / "elsewhere")
        path.symlink_to(path.parent.parent / "elsewhere")

    def absolute(path: Path) -> None:
        path.unlink()
        path.symlink_to("/etc/passwd")

    def dangling(path: Path) -> None:
        path.unlink()
        path.symlink_to("nowhere")

    def circular(path: Path) -> None:
        path.unlink()
        path.symlink_to(path.name)

    def hardlink(path: Path) -> None:
        os.link(path, path.parent / "second-name")

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    changes: dict[str, tuple[str, Change]] = {
        "a symbolic link": ("link", symlink),
        "a link to a file of the system": ("link", absolute),
        "a link to nothing": ("link", dangling),
        "a link to itself": ("link", circular),
        "a hard link": ("link", hardlink),
        "a pipe": ("not-a-file", pipe),
        "a folder": ("not-a-file", folder),
    }
    for form in FORMS:
        names = [document for document, _ in documents(form)]
        names.append(UNET if form == "diffusers folder" else WEIGHTS_NAME)
        for name in names:
            for what, (code, change) in changes.items():
                yield _case(
                    "C-16", form, f"{name} is another thing", what, code,
                    bound(lambda n, c, p: c(p / n), name, change),
                )  # fmt: skip
            missing = "no-manifest" if name == MANIFEST_NAME else "not-found"
            if name != INDEX:  # which may be missing
                yield _case(
                    "C-12", form, "a file that is missing", name, missing,
                    bound(lambda n, p: (p / n).unlink(), name),
                )  # fmt: skip
    for part in ("unet", "scheduler"):
        yield _case(
            "C-16", "diffusers folder", "a part that is a link", part, "link",
            bound(lambda n, p: (
                (p / n).rename(p.parent / f"moved-{n}-{os.urandom(4).hex()}"),
                (p / n).symlink_to(p.parent, target_is_directory=True),
            ), part),
        )  # fmt: skip


def _configurations() -> Iterator[Case]:
    """C-15 and R-7: the network's numbers."""
    bad: list[Any] = [None, "x", [], {}, -1, 0, 10**30, 1.5, True, {"_target_": "os.system"}]
    fields = {
        "sample_size": bad, "in_channels": bad, "out_channels": bad,
        "layers_per_block": bad, "norm_num_groups": bad,
        "down_block_types": [*bad, ["os.system"], ["CrossAttnDownBlock2D"], ["../DownBlock2D"]],
        "up_block_types": [*bad, ["UpBlock2D"] * 100],
        "block_out_channels": [*bad, [1 << 40], [0, 0], ["4", "4"], [4] * 100],
        "act_fn": ["os.system", None, 1, [], "softmax"],
        "time_embedding_type": ["fourier", "learned", "os.system", None, 1],
        "mid_block_type": ["os.system", "UNetMidBlock2DCrossAttn", 1, []],
        "resnet_time_scale_shift": ["os.system", None, 1],
        "downsample_type": ["os.system", None, 1],
        "norm_eps": [-1, 0, "x", None, []],
        "dropout": [-1, 1, 2, "x", None],
        "unknown_key": [1, "x", None],
        "_target_x": [],
        "strides": [1],
        "trust_remote_code": [True],
    }  # fmt: skip
    for key, values in fields.items():
        for place, value in enumerate(values):
            yield _case(
                "C-15", "diffusers folder", f"a network with another {key}",
                f"{place}: {str(value)[:40]}", "bad-settings",
                bound(lambda k, v, p: edit(p / CONFIG, **{k: v}), key, value),
            )  # fmt: skip
    for name in (
        "os.system", "", None, 1, "UNet2DModel ", "UNet1DModel", "evil.UNet2DModel", "UNet3DModel",
        "FlaxUNet2DModel", ["UNet2DModel"], {"_target_": "os.system"}, "__import__", "\x1b[2J",
    ):  # fmt: skip
        yield _case(
            "C-15", "diffusers folder", "a network class that is not ours", repr(name),
            "unknown-class", bound(lambda n, p: edit(p / CONFIG, _class_name=n), name),
        )  # fmt: skip


def _schedulers() -> Iterator[Case]:
    """The same of the scheduler."""
    fields: dict[str, list[Any]] = {
        "num_train_timesteps": [0, -1, "x", None, [], 10**9, 1.5],
        "beta_start": [0, -1, "x", None, [], 1, 2, 10**30],
        "beta_end": [0, -1, "x", None, [], 1, 2],
        "beta_schedule": ["os.system", None, 1, [], "x"],
        "prediction_type": ["os.system", None, 1, []],
        "timestep_spacing": ["os.system", None, 1, []],
        "clip_sample": ["x", None, 5, []],
        "steps_offset": [-1, "x", [], 10**9],
        "unknown_key": [1, None, "x"],
    }
    for key, values in fields.items():
        for place, value in enumerate(values):
            yield _case(
                "C-15", "diffusers folder", f"a scheduler with another {key}",
                f"{place}: {str(value)[:40]}", "bad-settings",
                bound(lambda k, v, p: edit(p / SCHEDULER, **{k: v}), key, value),
            )  # fmt: skip


def _indices() -> Iterator[Case]:
    """C-15: an index that names code or classes of its own."""
    for key, value in {
        "a pipeline of its own": {"_class_name": ["pipeline", "Evil"]},
        "a pipeline as a table": {"_class_name": {"_target_": "os.system"}},
        "no pipeline": {"_class_name": None},
        "a network of its own": {"unet": ["evil", "UNet2DModel"]},
        "a network from a path": {"unet": ["../evil", "UNet2DModel"]},
        "a network from os": {"unet": ["os", "system"]},
        "a network from builtins": {"unet": ["builtins", "eval"]},
        "a scheduler of its own": {"scheduler": ["scheduling_evil", "Evil"]},
        "a scheduler from a deep module": {"scheduler": ["diffusers.utils.evil", "X"]},
        "a part of its own": {"evil": ["evil", "Evil"]},
    }.items():
        yield _case(
            "C-15", "diffusers folder", "an index that brings code", key, "custom-code",
            bound(lambda v, p: edit(p / INDEX, **v), value),
        )  # fmt: skip
    for key, value in {
        "a pipeline of another name": {"_class_name": "EvilPipeline"},
        "a pipeline of texts": {"_class_name": "StableDiffusionPipeline"},
        "another network": {"unet": ["diffusers", "UNet1DModel"]},
        "a part in three": {"unet": ["diffusers", "UNet2DModel", "x"]},
        "a part of numbers": {"unet": [1, 2]},
        "an unknown part": {"evil": ["diffusers", "Evil"]},
    }.items():
        yield _case(
            "C-15", "diffusers folder", "an index of unknown classes", key, "unknown-class",
            bound(lambda v, p: edit(p / INDEX, **v), value),
        )  # fmt: skip
    yield _case(
        "C-15", "diffusers folder", "a configuration that brings code", "auto_map", "custom-code",
        lambda p: edit(p / CONFIG, auto_map={"AutoModel": "evil.Evil"}),
    )  # fmt: skip


def _code() -> Iterator[Case]:
    """C-15: programs anywhere in the folder."""
    for name in (
        "pipeline.py", "unet/model.py", "scheduler/scheduler.py", "a/b/c/d.py", "unet/evil.PY",
        "evil.so", "unet/evil.dll", "evil.dylib", "evil.pyc", "__init__.py", "unet/x.pyd",
    ):  # fmt: skip
        yield _case(
            "C-15", "diffusers folder", "a program in the folder", name, "custom-code",
            bound(lambda n, p: (
                (p / n).parent.mkdir(parents=True, exist_ok=True), (p / n).write_text("import os\n")
            ), name),
        )  # fmt: skip
    for name in ("diffusion_pytorch_model.bin", "model.pt", "weights.pkl", "x.ckpt"):
        yield _case(
            "C-8", "diffusers folder", "pickles alone", name, "pickled-weights",
            bound(lambda n, p: (p / UNET).rename(p / "unet" / n), name),
        )  # fmt: skip


def _skipped() -> Iterator[Case]:
    """C-17: models that are well formed and not examined; exit code 3."""
    for part in ("vae", "text_encoder", "tokenizer", "vqvae", "transformer", "image_encoder"):
        yield _case(
            "C-17", "diffusers folder", "a part of a latent model", part, "latent-diffusion",
            bound(lambda n, p: (p / n).mkdir(), part), 3,
        )  # fmt: skip
        yield _case(
            "C-17", "diffusers folder", "an index of a latent model", part, "latent-diffusion",
            bound(lambda n, p: edit(p / INDEX, **{n: ["diffusers", "AutoencoderKL"]}), part), 3,
        )  # fmt: skip
    yield _case(
        "C-17", "diffusers folder", "a conditional network", "", "latent-diffusion",
        lambda p: edit(p / CONFIG, _class_name="UNet2DConditionModel"), 3,
    )  # fmt: skip
