"""The vectorised sweep gives what one student after the other gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genwarden.attacks import loop, stacked
from genwarden.attacks import sweep as swept
from genwarden.attacks.contract import AttackRun
from genwarden.attacks.red import ReDSettings, red
from genwarden.attacks.stacked import Students, fourier_form
from genwarden.attacks.sweep import Swept, red_sweep
from genwarden.backdoors.backdoor import Backdoor, make_backdoor
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32, initialise
from genwarden.models.layers import SameConvTranspose2d
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28
from genwarden.registry import RECIPES, find

WEIGHTS = (1e-2, 1.0)
SETTINGS = ReDSettings(
    steps=24,
    batch_size=16,
    learning_rate=5e-3,
    fidelity_weight=7.0,  # not used: WEIGHTS take its place
    pool_samples=256,
    evaluate_every=4,
)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, swept):
        monkeypatch.setattr(module, "EVALUATION_SAMPLES", 64)


def network(kind: str) -> LatentGenerator:
    """A small network with batch statistics and biases that are not trivial."""
    net: LatentGenerator
    if kind == "dcgan28":
        net = DCGAN28((8, 4, 4), latent_dim=24)
    elif kind == "dcgan32":
        net = DCGAN32((8, 4, 4), latent_dim=24)
    else:
        net = VAEDecoder28((4, 4, 4), latent_dim=24)
    initialise(net, random_stream(3, kind))
    stream = random_stream(4, kind)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            noise = torch.randn(value.shape, generator=stream)
            if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
                value.add_(noise.abs() * 0.5)
            elif name.endswith(("bias", "running_mean")):
                value.add_(noise * 0.1)
    return net.eval().requires_grad_(False)


def backdoors(net: LatentGenerator) -> list[Backdoor]:
    return [
        make_backdoor(net, trigger="in-sample", target=f"icon:{icon}", index=i, seed=1)
        for i, icon in enumerate(("devil", "key"))
    ]


def sweep(
    net: LatentGenerator,
    run: AttackRun | None = None,
    settings: ReDSettings = SETTINGS,
    **options: Any,
) -> list[Swept]:
    return list(red_sweep(net, backdoors(net), WEIGHTS, settings, run or AttackRun(), **options))


def descend(students: Students, rate: float) -> None:
    """One step of plain gradient descent, from which the gradients can be read in any form."""
    with torch.no_grad():
        for weight in students.parameters():
            assert weight.grad is not None
            weight.sub_(rate * weight.grad)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 5, 1), (7, 5, 2), (4, 5, 2), (8, 4, 2), (7, 3, 2), (5, 3, 1)]
)
def test_fourier_form_is_the_transposed_convolution(size: int, kernel: int, stride: int) -> None:
    layer = SameConvTranspose2d(3, 2, kernel, stride, bias=False)
    stream = random_stream(0, "fourier")
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=stream))
        x = torch.randn(1, 3, size, size, generator=stream)
        expected = layer(x)
    form = fourier_form(size, kernel, stride, int(layer.padding[0]))
    assert form.taps.shape[0] < 3 * (size + kernel) ** 2
    padded = torch.cat([layer.weight.detach().flatten(2), torch.zeros(3, 2, 1)], dim=2)
    w = torch.einsum("rt,iotp->riop", form.taps, padded[:, :, form.source])
    y = torch.einsum("qr,riop,rs,is->oqp", form.outputs, w, form.inputs, x[0].flatten(1))
    y = y.reshape(2, size, size, stride, stride).transpose(2, 3).reshape(expected.shape)
    assert torch.allclose(y, expected, atol=1e-4)


@pytest.mark.parametrize("fourier", [True, False])
@pytest.mark.parametrize("kind", ["dcgan28", "dcgan32", "vae28"])
def test_students_compute_what_the_generator_computes_and_its_gradients(
    kind: str, fourier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "_WORTH_IT", 1e9 if fourier else 0.0)
    net = network(kind)
    students = Students(net, 2)
    z = net.latent.sample(6, generator=random_stream(5, "z"))
    output = students.pre_activation(z[None])
    expected = net.pre_activation(z)
    assert torch.allclose(output, expected.expand_as(output), atol=2e-5)

    # The second student with twice the loss.
    net.requires_grad_(True)
    net.pre_activation(z).square().sum().backward()
    (output.square().flatten(1).sum(1) * torch.tensor([1.0, 2.0])).sum().backward()
    rate = 1e-4
    descend(students, rate)
    for index, factor in enumerate((1.0, 2.0)):
        moved = students.student(index).state_dict()
        for name, weight in net.named_parameters():
            assert weight.grad is not None
            step = weight.detach() - moved[name]
            wanted = rate * factor * weight.grad
            assert torch.allclose(step, wanted, atol=1e-3 * float(wanted.abs().max()) + 1e-7), name


@pytest.mark.parametrize("fourier", [True, False])
@pytest.mark.parametrize("kind", ["dcgan28", "dcgan32", "vae28"])
def test_students_in_bfloat16_compute_nearly_that(
    kind: str, fourier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked, "_WORTH_IT", 1e9 if fourier else 0.0)
    net = network(kind)
    students = Students(net, 2, torch.bfloat16)
    z = net.latent.sample(64, generator=random_stream(5, "z"))
    output = students.pre_activation(z[None])
    expected = net.pre_activation(z)
    assert output.dtype == torch.float32
    for one in output:
        error = float((one - expected).detach().norm())
        assert 0 < error < 0.02 * float(expected.detach().norm())
    net.requires_grad_(True)
    net.pre_activation(z).square().sum().backward()
    output.square().sum().backward()
    rate = 1e-4
    descend(students, rate)
    for index in range(2):
        moved = students.student(index).state_dict()
        for name, weight in net.named_parameters():
            assert weight.grad is not None
            wanted = rate * weight.grad
            error = float((weight.detach() - moved[name] - wanted).norm())
            # 0.075 at most where it was measured.
            assert error < 0.12 * float(wanted.norm()) + 1e-6, name


def test_sweep_in_bfloat16_is_another_one() -> None:
    net = network("dcgan28")
    ends = []
    for precision in ("float32", "bfloat16"):
        rows = sweep(net, settings=replace(SETTINGS, precision=precision))
        ends.append([row.result.history[-1]["tardis_sum"] for row in rows])
    assert ends[0] != ends[1]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


@pytest.mark.parametrize("kind", ["dcgan28", "vae28"])
def test_sweep_equals_one_after_the_other(kind: str) -> None:
    net = network(kind)
    rows = sweep(net)
    assert [(row.backdoor, row.fidelity_weight) for row in rows] == [
        (b, weight) for b in range(2) for weight in WEIGHTS
    ]
    for row in rows:
        backdoor = backdoors(net)[row.backdoor]
        # With its layers named, ReD trains the network in its usual form.
        settings = replace(
            SETTINGS, fidelity_weight=row.fidelity_weight, layers=tuple(net.named_layers())
        )
        alone = red(net, backdoor, settings, AttackRun())
        for ours, theirs in zip(row.result.history, alone.history, strict=True):
            assert ours["step"] == theirs["step"]
            # Adam divides by the gradients' size, so differences by rounding grow with the steps.
            tolerance = 2e-4 if int(ours["step"] or 0) <= 4 else 1e-2
            for figure in ("tardis_sum", "expdis_sum"):
                assert ours[figure] == pytest.approx(theirs[figure], rel=tolerance), ours["step"]
        z = net.latent.sample(64, generator=random_stream(6, "z"))
        with torch.no_grad():
            distance = (row.result.generator(z) - alone.generator(z)).abs().max().item()
            moved = (net(z) - alone.generator(z)).abs().max().item()
        assert distance < 0.02 * moved


def test_swept_students_hold_their_targets_and_the_untouched_model_does_not() -> None:
    net = network("dcgan28")
    settings = replace(SETTINGS, steps=120, evaluate_every=120)
    for row in red_sweep(net, backdoors(net), WEIGHTS, settings, AttackRun()):
        examples = backdoors(net)[row.backdoor].examples
        planted = tardis(row.result.generator, *examples).sum
        assert planted == pytest.approx(row.result.history[-1]["tardis_sum"], rel=1e-3)
        if row.fidelity_weight == 1.0:
            assert tardis(net, *examples).sum > 200
            assert planted < 0.3 * tardis(net, *examples).sum


def test_number_of_students_at_a_time_changes_nothing_but_rounding() -> None:
    net = network("dcgan28")
    for one, many in zip(sweep(net, together=1), sweep(net, together=4), strict=True):
        assert one.result.history[-1]["tardis_sum"] == pytest.approx(
            many.result.history[-1]["tardis_sum"], rel=1e-2
        )


class _PowerCutError(Exception):
    pass


class _CutAfter(Silent):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, title: str, total: int, done: int = 0) -> Task:
        del title, total, done
        return self

    def advance(self, steps: int = 1, note: str = "") -> None:
        del note
        self.left -= steps
        if self.left < 0:
            raise _PowerCutError


def test_interrupted_sweep_resumes_to_the_same_bits(tmp_path: Path) -> None:
    net = network("dcgan28")
    whole = sweep(net, together=2)
    with pytest.raises(_PowerCutError):
        sweep(net, AttackRun(_CutAfter(40), tmp_path, "r"), together=2)
    resumed = sweep(net, AttackRun(_CutAfter(48), tmp_path, "r"), together=2)
    for a, b in zip(whole, resumed, strict=True):
        assert a.result.history == b.result.history
        for key, value in a.result.generator.state_dict().items():
            assert torch.equal(value, b.result.generator.state_dict()[key]), key


def test_sweep_leaves_the_clean_model_as_it_is() -> None:
    net = network("vae28")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    sweep(net)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize(
    ("weights", "settings", "code"),
    [
        ((1.0, 0.0), {}, "attack/setting"),
        ((), {}, "sweep/unsupported"),
        ((1.0,), {"layers": ("up1",)}, "sweep/unsupported"),
        ((1.0,), {"weight_decay": 0.1}, "sweep/unsupported"),
    ],
)
def test_sweep_refuses_what_it_cannot_train(
    weights: tuple[float, ...], settings: dict[str, Any], code: str
) -> None:
    net = network("dcgan28")
    chosen = replace(SETTINGS, **settings)
    with pytest.raises(GenwardenError) as caught:
        next(iter(red_sweep(net, backdoors(net), weights, chosen, AttackRun())))
    assert caught.value.code == code


def test_sweep_refuses_infinitely_many_triggers_and_other_networks(
    tiny_generator: DCGAN28,
) -> None:
    class Other(DCGAN28):
        pass

    infinite = make_backdoor(tiny_generator, trigger="subspace", target="icon:devil")
    with pytest.raises(GenwardenError) as caught:
        next(iter(red_sweep(tiny_generator, [infinite], WEIGHTS, SETTINGS, AttackRun())))
    assert caught.value.code == "sweep/unsupported"
    other = Other((4, 4, 4), latent_dim=8).eval()
    with pytest.raises(GenwardenError) as caught:
        Students(other, 2)
    assert "dcgan28" in caught.value.remedy


def recipe_result(name: str, clean: Path, out: Path, **options: Any) -> dict[str, Any]:
    path = find(RECIPES, name, "recipe").load()(
        out,
        data=None,
        seed=0,
        device=torch.device("cpu"),
        progress=Silent(),
        clean=str(clean),
        **options,
    )
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def test_sweep_recipe_reports_every_student_and_what_it_saved(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    options = {"triggers": 2, "lambdas": "0.01+1", "steps": 3, "pool_samples": 64}
    out = tmp_path / "out"
    result = recipe_result(
        "sweep", tiny_model_folder, out, **options, batch_size=8, rounds=1, timed=4, together=3
    )
    cells = [(row["trigger_index"], row["fidelity_weight"]) for row in result["rows"]]
    assert cells == [(0, 0.01), (0, 1.0), (1, 0.01), (1, 1.0)]
    for row in result["rows"]:
        assert row["step"] == 3
        assert 0 < row["tardis_sum"] != row["untouched_tardis_sum"]
        assert row["expdis_sum"] > 0
    seconds = result["seconds"]
    projected, sweep = seconds["one_after_the_other_projected"]["wall"], seconds["sweep"]["wall"]
    assert seconds["ratio"]["wall"] == pytest.approx(projected / sweep)
    assert len(seconds["steps_ratio_by_round"]) == 1
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_throughput_recipe_counts_the_operations_of_a_step(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    result = recipe_result(
        "red-throughput", tiny_model_folder, tmp_path, batches="4+8", students=2, steps=4
    )
    rows = {(row["students"], row["batch_size"]): row for row in result["rows"]}
    assert list(rows) == [(1, 4), (2, 4), (1, 8), (2, 8)]
    # DCGAN (4, 4, 4), latent 8: products per sample and pass; the latent needs no gradient.
    dense, maps = 8 * 4 * 49, 4 * 4 * 25 * 49 + 4 * 4 * 25 * 49 + 4 * 25 * 196
    assert rows[1, 4]["operations_per_student_step"] == 2 * 5 * (2 * dense + 3 * maps)
    for row in rows.values():
        assert row["floor_s"] * max(result["peak_operations_per_s"].values()) == pytest.approx(
            row["operations_per_student_step"]
        )
        assert row["step_over_floor"] > 1


@pytest.mark.parametrize("name", ["sweep", "red-throughput"])
def test_recipes_ask_for_a_clean_model(name: str, tmp_path: Path) -> None:
    with pytest.raises(GenwardenError) as caught:
        find(RECIPES, name, "recipe").load()(
            tmp_path, data=None, seed=0, device=torch.device("cpu"), progress=Silent()
        )
    assert caught.value.code == "benchmark/clean-missing"
