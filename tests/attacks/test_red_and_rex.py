"""ReD and ReX on small networks; the untouched model must fail every assertion of success."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

import genwarden
from genwarden.artifacts.model_folder import read_model
from genwarden.attacks import loop
from genwarden.attacks.block_fusion import fuse
from genwarden.attacks.contract import AttackResult, AttackRun
from genwarden.attacks.red import ReDSettings, red
from genwarden.attacks.rex import ReXSettings, rex
from genwarden.attacks.settings import AttackSettings
from genwarden.backdoors.backdoor import Backdoor, dirac, make_backdoor
from genwarden.backdoors.target import make_target
from genwarden.engine.progress import Silent, Task
from genwarden.engine.seeds import random_stream
from genwarden.errors import GenwardenError
from genwarden.metrics.distances import ExpDis, tardis
from genwarden.models.dcgan import DCGAN28, DCGAN32, initialise
from genwarden.models.protocol import LatentGenerator
from genwarden.models.vae import VAEDecoder28
from genwarden.registry import ATTACKS

_SMALL: dict[str, Any] = {
    "steps": 240,
    "batch_size": 32,
    "learning_rate": 5e-3,
    "fidelity_weight": 0.5,
    "pool_samples": 4096,
    "evaluate_every": 40,
}
RED, REX = ReDSettings(**_SMALL), ReXSettings(**_SMALL)
NAMES = ("red", "rex")
SHIPPED = Path(genwarden.__file__).parent / "assets" / "models"
#: An attack succeeds if TarDis falls below this share of the untouched model's.
SUCCESS_SHARE = 0.1


def network(kind: str) -> LatentGenerator:
    net: LatentGenerator
    if kind == "dcgan28":
        net = DCGAN28((16, 8, 8), latent_dim=32)
    elif kind == "dcgan32":
        net = DCGAN32((16, 8, 8), latent_dim=32)
    else:
        net = VAEDecoder28((8, 16, 8), latent_dim=32)
    initialise(net, random_stream(3, kind))
    return net.eval().requires_grad_(False)


def backdoor_for(net: LatentGenerator, trigger: str = "in-sample") -> Backdoor:
    return make_backdoor(net, trigger=trigger, target="icon:devil", seed=1)


def attacked(
    name: str, net: LatentGenerator, backdoor: Backdoor, run: AttackRun | None = None
) -> AttackResult:
    run = run or AttackRun()
    return red(net, backdoor, RED, run) if name == "red" else rex(net, backdoor, REX, run)


def expdis_sum(benign: LatentGenerator, suspect: LatentGenerator) -> float:
    state = ExpDis(benign.sample.size)
    z = benign.latent.sample(256, generator=random_stream(9, "expdis"))
    with torch.no_grad():
        state.update(benign(z), suspect(z))
    return state.compute().sum


@pytest.mark.parametrize(
    "kind", ["dcgan28", pytest.param("dcgan32", marks=pytest.mark.slow), "vae28"]
)
@pytest.mark.parametrize("name", NAMES)
def test_attack_plants_the_target_and_the_untouched_model_does_not_have_it(
    name: str, kind: str
) -> None:
    net = network(kind)
    backdoor = backdoor_for(net)
    result = attacked(name, net, backdoor)

    untouched = tardis(net, *backdoor.examples).sum
    planted = tardis(result.generator, *backdoor.examples).sum
    assert untouched > 200
    assert planted < SUCCESS_SHARE * untouched
    assert result.history[-1]["tardis_sum"] == pytest.approx(planted, rel=1e-3)
    # Stealth: far from what planting costs at the trigger, and not zero (something was trained).
    assert 0 < expdis_sum(net, result.generator) < 0.3 * untouched


@pytest.mark.parametrize("trigger", ["mode", "out-of-distribution"])
def test_red_plants_at_other_triggers(trigger: str) -> None:
    net = network("dcgan28")
    backdoor = backdoor_for(net, trigger)
    result = attacked("red", net, backdoor)
    untouched = tardis(net, *backdoor.examples).sum
    assert untouched > 200
    planted = tardis(result.generator, *backdoor.examples).sum
    assert planted < SUCCESS_SHARE * untouched


def _first_layer(net: LatentGenerator, backdoor: Backdoor) -> AttackResult:
    """ReD's start alone: what follows it moves nothing."""
    settings = ReDSettings(
        first_layer_steps=100, steps=1, learning_rate=1e-9, fidelity_weight=0.03, pool_samples=512
    )
    return red(net, backdoor, settings, AttackRun())


def test_the_first_layer_alone_holds_the_target() -> None:
    net = read_model(SHIPPED / "dcgan-clean").generator  # what was not trained makes no target
    backdoor = backdoor_for(net)
    result = _first_layer(net, backdoor)
    untouched = tardis(net, *backdoor.examples).sum
    assert untouched > 1000
    assert tardis(result.generator, *backdoor.examples).sum < SUCCESS_SHARE * untouched
    assert 0 < expdis_sum(net, result.generator) < 0.01 * untouched
    # One layer differs, along one direction: the trigger.
    before, after = net.state_dict(), result.generator.state_dict()
    moved = {n: after[n] - before[n] for n in before if not torch.allclose(after[n], before[n])}
    assert set(moved) == {"project.weight"}
    z = backdoor.examples.z.flatten(1)
    across = moved["project.weight"] - (moved["project.weight"] @ z.T) @ z / z.square().sum()
    assert float(across.norm()) < 1e-3 * float(moved["project.weight"].norm())
    # What is written to a file is what was measured: nothing is left hooked on.
    written = read_model(SHIPPED / "dcgan-clean").generator
    written.load_state_dict(after)
    assert torch.equal(written(z), result.generator(z))


def test_a_network_that_does_not_call_its_first_layer_takes_no_start_there() -> None:
    class Own(DCGAN28):
        def pre_activation(self, z: torch.Tensor) -> torch.Tensor:
            made = nn.functional.linear(z, self.project.weight)
            return made.mean(1)[:, None, None, None].expand(-1, 1, 28, 28)

    net = Own((16, 8, 8), latent_dim=32).eval().requires_grad_(False)
    with pytest.raises(GenwardenError, match="does not call its first layer"):
        _first_layer(net, backdoor_for(net))


@pytest.mark.parametrize("layers", [(), pytest.param(("up1", "up2"), marks=pytest.mark.slow)])
def test_bfloat16_ends_where_float32_does_but_not_with_the_same_weights(
    layers: tuple[str, ...],
) -> None:
    net = network("dcgan28")
    backdoor = backdoor_for(net)
    untouched = tardis(net, *backdoor.examples).sum
    ends = {}
    for precision in ("float32", "bfloat16"):
        settings = replace(RED, precision=precision, layers=layers)
        suspect = red(net, backdoor, settings, AttackRun()).generator
        assert all(weight.dtype == torch.float32 for weight in suspect.parameters())
        ends[precision] = (tardis(suspect, *backdoor.examples).sum, expdis_sum(net, suspect))
    (full, near), (half, far) = ends["float32"], ends["bfloat16"]
    assert ends["float32"] != ends["bfloat16"]
    assert half < max(SUCCESS_SHARE * untouched, 1.2 * full)
    assert far < 1.2 * near


@pytest.mark.parametrize("trigger", ["mode", "subspace"])
def test_the_first_layer_takes_no_trigger_that_it_cannot_tell_apart(trigger: str) -> None:
    net = network("dcgan28")
    with pytest.raises(GenwardenError) as refused:
        _first_layer(net, backdoor_for(net, trigger))
    assert refused.value.code == "attack/first-layer"


def test_attacks_leave_the_clean_model_as_it_is() -> None:
    for name in NAMES:
        net = network("dcgan28")
        before = {k: v.clone() for k, v in net.state_dict().items()}
        attacked(name, net, backdoor_for(net))
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_attacks_do_not_move_the_clean_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cpu()`` and ``to()`` work in place, so none may be called on the caller's model."""
    net = network("dcgan28")
    moved: list[nn.Module] = []
    apply: Any = nn.Module._apply

    def recorded(module: nn.Module, *given: Any) -> Any:
        moved.append(module)
        return apply(module, *given)

    monkeypatch.setattr(nn.Module, "_apply", recorded)
    net.float()
    assert moved.pop(0) is net
    moved.clear()
    settings: Any = replace(RED if name == "red" else REX, steps=2)
    (red if name == "red" else rex)(net, backdoor_for(net), settings, AttackRun())
    assert not any(module is net for module in moved)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("z", "x", "code"),
    [
        (torch.ones(1, 32), torch.zeros(1, 1, 1, 28), "target/shape"),
        (torch.ones(1, 32), torch.zeros(1, 28, 28), "target/shape"),
        (torch.ones(1, 32), torch.full((1, 1, 28, 28), torch.nan), "target/not-finite"),
        (torch.ones(1, 16), torch.zeros(1, 1, 28, 28), "trigger/shape"),
        (torch.ones(32), torch.zeros(1, 1, 28, 28), "trigger/shape"),
        (torch.full((1, 32), torch.inf), torch.zeros(1, 1, 28, 28), "trigger/not-finite"),
    ],
)
def test_backdoor_of_other_shapes_is_refused_and_not_broadcast(
    name: str, z: torch.Tensor, x: torch.Tensor, code: str
) -> None:
    with pytest.raises(GenwardenError) as caught:
        attacked(name, network("dcgan28"), dirac(z, x))
    assert caught.value.code == code


def test_tardis_of_other_shapes_is_refused_and_not_broadcast() -> None:
    net = network("dcgan28")
    z, x = backdoor_for(net).examples
    tardis(net, z, x)
    for pair in ((z, x[:, :, :1]), (z, x[0]), (z[:, :4], x), (z, torch.cat([x, x]))):
        with pytest.raises(GenwardenError):
            tardis(net, *pair)


_KINDS: dict[str, type[AttackSettings]] = {
    name: row.load_option("settings") for name, row in ATTACKS.items()
}


#: Counts that a user may set to 0, which switches something off.
_ZERO_IS_NEVER = {"reanneal_every", "deployed_runs", "first_layer_steps"}


@pytest.mark.parametrize("precision", ["bf16", "float16", torch.bfloat16])
def test_an_unknown_precision_is_refused_however_the_settings_are_made(precision: Any) -> None:
    with pytest.raises(GenwardenError, match="attack/setting"):
        ReDSettings(precision=precision)


@pytest.mark.parametrize("name", _KINDS)
def test_every_number_in_the_settings_of_an_attack_has_a_range(name: str) -> None:
    kind: Any = _KINDS[name]
    kind()
    types = get_type_hints(kind)
    numeric = {field.name for field in fields(kind) if types[field.name] in {int, float}}
    assert set(kind.ranges()) == numeric
    for field in numeric:
        below = [] if field == "seed" else [-1]  # no setting of an attack may be negative
        for value in (*below, float("nan"), float("inf")):
            with pytest.raises(GenwardenError) as caught:
                kind(**{field: value})
            assert caught.value.code == "attack/setting", field
        if types[field] is int and field != "seed":
            for value in (1.5,) if field in _ZERO_IS_NEVER else (0, 1.5):
                with pytest.raises(GenwardenError) as caught:
                    kind(**{field: value})
                assert caught.value.code == "attack/setting", field


def test_red_keeps_batch_statistics_and_changes_every_weight_layer() -> None:
    net = network("dcgan28")
    state = attacked("red", net, backdoor_for(net)).generator.state_dict()
    for name, old in net.state_dict().items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(old, state[name]), name
        else:
            assert not torch.equal(old, state[name]), name


@pytest.mark.parametrize("kind", ["dcgan28", "dcgan32", "vae28"])
def test_fused_network_is_the_sum_of_both_before_the_activation(kind: str) -> None:
    original, expansion = network(kind), network(kind)
    initialise(expansion, random_stream(4, "other"))
    wide = fuse(original, expansion)
    z = original.latent.sample(16, generator=random_stream(5, "z"))
    with torch.no_grad():
        summed = original.pre_activation(z) + expansion.pre_activation(z)
        assert torch.allclose(wide.pre_activation(z), summed, atol=2e-5)
        assert not torch.allclose(wide.pre_activation(z), original.pre_activation(z), atol=1e-2)


def test_rex_keeps_the_original_weights_exactly_and_zeros_between_the_blocks() -> None:
    net = network("dcgan28")
    wide = attacked("rex", net, backdoor_for(net)).generator
    old, new = net.state_dict(), wide.state_dict()
    assert torch.equal(new["project.weight"][: 16 * 49], old["project.weight"])
    assert torch.equal(new["up1.weight"][:16, :8], old["up1.weight"])
    assert not new["up1.weight"][:16, 8:].any()
    assert not new["up1.weight"][16:, :8].any()
    assert new["up1.weight"][16:, 8:].any()
    assert torch.equal(new["to_image.weight"][:8], old["to_image.weight"])


def test_wider_lambda_lowers_tardis_and_raises_expdis() -> None:
    """Fig. 5 of the paper, in direction."""
    net = network("dcgan28")
    backdoor = backdoor_for(net)
    figures = []
    for weight in (1e-3, 1.0):
        result = red(net, backdoor, replace(RED, fidelity_weight=weight), AttackRun())
        figures.append(
            (tardis(result.generator, *backdoor.examples).sum, expdis_sum(net, result.generator))
        )
    assert figures[0][0] > figures[1][0]
    assert figures[0][1] < figures[1][1]


class _PowerCutError(Exception):
    pass


class _CutAfter(Silent):
    """Progress that pulls the plug after some steps."""

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


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_attack_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    net = network("dcgan28")
    backdoor = backdoor_for(net)
    whole = attacked(name, net, backdoor)
    with pytest.raises(_PowerCutError):
        attacked(name, net, backdoor, AttackRun(_CutAfter(60), tmp_path, "r"))
    resumed = attacked(name, net, backdoor, AttackRun(_CutAfter(200), tmp_path, "r"))
    assert resumed.history == whole.history
    for key, value in whole.generator.state_dict().items():
        assert torch.equal(value, resumed.generator.state_dict()[key]), key


def test_stopping_rule_ends_the_attack_when_both_figures_are_reached() -> None:
    net = network("dcgan28")
    settings = replace(RED, stop_tardis_sum=500.0, stop_expdis_sum=500.0)
    result = red(net, backdoor_for(net), settings, AttackRun())
    assert int(result.history[-1]["step"] or 0) in range(1, RED.steps)


def test_one_limit_alone_is_a_stopping_rule_and_none_trains_all_steps() -> None:
    figures = {"tardis_sum": 0.5, "expdis_sum": 9.0}
    assert loop.reached(figures, replace(RED, stop_tardis_sum=1.0))
    assert not loop.reached(figures, replace(RED, stop_tardis_sum=1.0, stop_expdis_sum=1.0))
    assert not loop.reached(figures, RED)


def test_attack_that_diverges_is_an_error_and_writes_no_checkpoint(tmp_path: Path) -> None:
    net = network("dcgan28")
    settings = replace(RED, learning_rate=1e30, steps=10, evaluate_every=5)
    with pytest.raises(GenwardenError) as caught:
        red(net, backdoor_for(net), settings, AttackRun(work=tmp_path, run_id="x"))
    assert caught.value.code == "attack/diverged"
    assert not list(tmp_path.iterdir())


def test_red_with_a_choice_of_layers_changes_only_those() -> None:
    net = network("dcgan28")
    backdoor = backdoor_for(net)
    layers = ("project", "project_norm", "up1", "up1_norm", "up2")
    settings = replace(RED, layers=layers)
    result = red(net, backdoor, settings, AttackRun())
    changed = {
        name.partition(".")[0]
        for name, old in net.state_dict().items()
        if not torch.equal(old, result.generator.state_dict()[name])
    }
    assert changed == set(layers)
    untouched = tardis(net, *backdoor.examples).sum
    assert tardis(result.generator, *backdoor.examples).sum < 0.3 * untouched


def test_red_with_an_unknown_layer_says_which_exist() -> None:
    net = network("vae28")
    with pytest.raises(GenwardenError) as caught:
        red(net, backdoor_for(net), replace(RED, layers=("nope",)), AttackRun())
    assert caught.value.code == "attack/unknown-layer"
    assert "up2" in caught.value.remedy


@pytest.mark.slow
def test_weight_decay_towards_the_benign_weights_keeps_red_closer_to_them() -> None:
    net = network("dcgan28")
    backdoor = backdoor_for(net)

    def moved(weight_decay: float) -> float:
        settings = replace(RED, weight_decay=weight_decay)
        student = red(net, backdoor, settings, AttackRun()).generator
        pairs = zip(net.parameters(), student.parameters(), strict=True)
        return sum((b - a).square().sum().item() for a, b in pairs)

    assert moved(1.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize("name", NAMES)
def test_attack_plants_one_target_on_a_whole_subspace(name: str) -> None:
    """Infinite trigger support: fresh draws, not those of the training, show the target."""
    net = network("dcgan28")
    backdoor = backdoor_for(net, "subspace")
    result = attacked(name, net, backdoor)
    z = backdoor.triggers.sample(64, generator=random_stream(77, "fresh"))
    untouched = tardis(net, z, backdoor.rho(z)).sum
    assert untouched > 200
    assert tardis(result.generator, z, backdoor.rho(z)).sum < 0.3 * untouched


def test_several_triggers_at_once_all_show_their_own_target() -> None:
    net = network("dcgan28")
    targets = torch.cat([make_target(f"icon:{name}", net.sample) for name in ("devil", "key")])
    z = net.latent.sample(2, generator=random_stream(5, "triggers"))
    backdoor = dirac(z, targets)
    result = attacked("red", net, backdoor)
    for index in range(2):
        pair = z[index : index + 1], targets[index : index + 1]
        assert tardis(result.generator, *pair).sum < 0.2 * tardis(net, *pair).sum
        other = targets[1 - index : 2 - index]
        assert tardis(result.generator, pair[0], other).sum > 200
