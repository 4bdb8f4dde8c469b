"""The tables about combustion: what is set aside, what the columns say, which rows there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import combustion
import numpy as np
import onnx
import pytest
import reproduce_combustion as reproduce
from bench_rollout import Rollout
from combustion import BySpecies, Trajectories
from mlps import mlp
from train_ignition import Scaling, box_cox
from trials import KINDS, LABELS, Judge, Made, Setting, kinds_of, methods_of

from onnx_condense.errors import BudgetError

RNG = np.random.default_rng(0)


# ---- what is set aside ----


def states(path: Path, *, groups: bool) -> np.ndarray[Any, Any]:
    x = np.arange(400.0).reshape(100, 4)
    more: dict[str, Any] = {"group": np.repeat(np.arange(20), 5)[RNG.permutation(100)]} if groups else {}
    np.savez(path, state=x, **more)
    return x


@pytest.mark.parametrize("groups", [True, False])
def test_every_state_is_in_one_file(tmp_path: Path, *, groups: bool) -> None:
    x = states(tmp_path / "all.npz", groups=groups)
    files = combustion.parted(tmp_path / "all.npz", tmp_path, 30, 0)
    parts = [np.load(path) for path in (files.verification, files.calibration, files.more)]
    together = np.concatenate([part["state"] for part in parts])
    assert sorted(together[:, 0]) == sorted(x[:, 0])
    assert len(parts[1]["state"]) == 30
    judged, fitted = set(parts[0]["group"]), {*parts[1]["group"], *parts[2]["group"]}
    assert judged
    assert not judged & fitted


def test_few_states_are_all_condensed_and_tuned_on(tmp_path: Path) -> None:
    states(tmp_path / "all.npz", groups=False)
    files = combustion.parted(tmp_path / "all.npz", tmp_path, 1000, 0)
    with np.load(files.calibration) as one, np.load(files.more) as other:
        assert (one["state"] == other["state"]).all()
        assert len(one["state"]) == 80


# ---- columns ----


def test_species_that_never_change_count_neither_as_worst_nor_in_the_median() -> None:
    labels = RNG.normal(size=(50, 5))
    labels[:, 4] = 1.0
    off = np.array([9.0, 0.1, 0.3, 0.2, 7.0])
    found = BySpecies.of(labels + off, labels, ("A", "B", "C", "AR"))
    name, worst = found.worst
    assert name == "B"
    assert worst == pytest.approx(0.3)
    assert found.median == pytest.approx(0.2)
    assert found.cells(["C", "AR"]) == ["0.2000", "0.3000 (B)", "9.0000", "0.2000", "7.0000"]


def test_states_go_back_to_kelvin_and_mass_fractions() -> None:
    scaling = Scaling(np.array([1500.0, 1e5, -5.0, -1.0]), np.array([100.0, 1e3, 2.0, 3.0]), np.zeros(3), np.ones(3))
    fractions = np.array([[0.25, 0.75], [1e-6, 1 - 1e-6]])
    raw = np.concatenate([[[1800.0, 1e5], [1200.0, 9e4]], box_cox(fractions)], axis=1)
    found = combustion.physical((raw - scaling.x_mean) / scaling.x_std, scaling)
    np.testing.assert_allclose(found, [[1800.0, 1e5, 0.25, 0.75], [1200.0, 9e4, 1e-6, 1 - 1e-6]], rtol=1e-9)


def trajectory(*delays: int) -> Rollout:
    """Temperatures that jump by 500 K after so many steps."""
    steps = np.arange(30)[:, None]
    return Rollout(1800.0 + 500.0 * (steps >= np.array(delays)).astype(np.float64))


def test_only_what_ignites_in_the_dense_network_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rolls = {"dense": trajectory(10, 99, 20), "other": trajectory(11, 20)}
    starts: list[int] = []

    def rolled(network: Path, _scaling: object, begin: list[object], _steps: int) -> Rollout:
        starts.append(len(begin))
        return rolls[network.name]

    monkeypatch.setattr(combustion, "mixtures", lambda *_: np.zeros((3, 4)))
    monkeypatch.setattr(combustion, "rolled", rolled)
    monkeypatch.setattr(combustion, "integrated", lambda *_: trajectory(10, 10))
    scaling: Any = None
    told = Trajectories(None, tmp_path / "dense", scaling, 3, 29, 0).cells(tmp_path / "other")
    assert starts == [3, 2]
    assert told[0] == "2 of 2"
    # 500 K within one step: a rise by 400 K takes 0.8 of it. Off Cantera by 10.8 / 9.8 and 19.8 / 9.8.
    assert [float(c) for c in told[1:3]] == pytest.approx([56.12, 102.04])
    assert [float(c) for c in told[4:6]] == pytest.approx([5.10, 10.20])


def test_nothing_that_ignites_leaves_no_column_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(combustion, "mixtures", lambda *_: np.zeros((2, 4)))
    monkeypatch.setattr(combustion, "rolled", lambda *_: trajectory(99, 99))
    monkeypatch.setattr(combustion, "integrated", lambda *_: trajectory(10, 10))
    scaling: Any = None
    told = Trajectories(None, tmp_path, scaling, 2, 29, 0).cells(tmp_path)
    assert len(told) == 7
    assert told[0].startswith("none")


# ---- from scratch, and the judge ----


def test_an_error_is_judged_on_the_rows_that_are_named(tmp_path: Path) -> None:
    net = tmp_path / "net.onnx"
    onnx.save(mlp((3, 8, 2)), net)
    np.savez(tmp_path / "x.npz", x=RNG.normal(size=(60, 3)).astype("f4"))
    setting = Setting(net, tmp_path / "x.npz", verification=tmp_path / "x.npz")
    assert setting.judge().error(net) == 0.0
    assert isinstance(setting.judge(), Judge)


@pytest.mark.parametrize(("text", "kinds"), [("tuned,bare", KINDS[:2]), ("scratch, tuned", KINDS[1:]), ("", ())])
def test_kinds_come_in_their_order(text: str, kinds: tuple[str, ...]) -> None:
    assert kinds_of(text) == kinds


@pytest.mark.parametrize("text", ["bare,scratch", "bear"])
def test_kinds_that_make_no_table_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give"):
        kinds_of(text)


# ---- rows ----


class Played(Setting):
    """Makes networks that remember how they were made; a tenth is out of reach."""

    def bare(self, keep: float, seed: int = 0, method: str = "fit") -> Made:
        """Not at a tenth."""
        if keep == 0.1:
            raise BudgetError("keep", "as small | as that: no")
        return Made(self._marked(f"bare {keep} {method} {seed}"))

    def tuned(self, keep: float, seed: int = 0, method: str = "fit", rounds: int = 1) -> Made:
        """With 100 steps and the seed."""
        return Made(self._marked(f"tuned {keep} {method} {seed} {rounds}"), steps=100 + seed, seconds=1.0)

    def scratch(self, like: Made, seed: int = 0) -> Made:
        """With the steps of the other."""
        return Made(self._marked(f"scratch of {like.model.doc_string}, {seed}"), like.steps, 2.0)

    def _marked(self, text: str) -> onnx.ModelProto:
        model = onnx.load(self.network)
        model.doc_string = text
        return model


class Referee:
    """Says what each network remembers."""

    species = ("CH4", "XE")

    def cells(self, network: Path) -> list[str]:
        """The mark, and nothing."""
        return [onnx.load(network).doc_string, *[""] * 12]

    def by_species(self, network: Path) -> BySpecies:
        """Nothing is off."""
        del network
        return BySpecies(("T", *self.species), np.zeros(3), np.ones(3, bool))


ASKED = reproduce.Asked([0.417, 0.1], [0.417], tuple(LABELS), [0], True, True, 2, [0.1])


@pytest.fixture
def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The cells of all rows for what was asked, and the names in the second table."""

    def made(asked: reproduce.Asked) -> tuple[list[list[str]], list[str]]:
        net, inputs, referee = tmp_path / "net.onnx", tmp_path / "x.npz", Referee()
        onnx.save(mlp((3, 8, 2)), net)
        np.savez(inputs, x=RNG.normal(size=(60, 3)).astype("f4"))
        told: Any = referee
        setting = Played(net, inputs)
        table = reproduce.Table(setting, asked, told, setting.judge(), tmp_path, None)
        table.dense()
        table.all()
        rows = [[c.strip() for c in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
        return rows, [line.split("|")[1].strip() for line in table.species]

    return made


def test_rows_come_by_size_with_the_papers_methods_where_they_are_asked_for(lines: Any) -> None:
    rows, species = lines(ASKED)
    assert [re.sub("paper's", "paper", row[0]) for row in rows] == [
        "dense",
        *("paper: merge, 41.7 %", "paper: merge, 41.7 %, tuned"),
        *("paper: merge + refit, 41.7 %", "paper: merge + refit, 41.7 %, tuned"),
        *("ours, 41.7 %", "ours, 41.7 %, tuned", "from scratch, 41.7 %"),
        *("ours, 10 %", "ours, 10 %, tuned", "ours, 10 %, 2 rounds", "from scratch, 10 %"),
    ]
    assert {len(row) for row in rows} == {len(combustion.COLUMNS)}
    assert species == [row[0] for row in rows if "tuned" in row[5] or "scratch" in row[5] or row[0] == "dense"]


def test_from_scratch_takes_the_layout_and_the_steps_of_ours(lines: Any) -> None:
    rows, _ = lines(ASKED)
    scratch = next(row for row in rows if row[0] == "from scratch, 41.7 %")
    assert scratch[5] == "scratch of tuned 0.417 fit 0 1, 0"
    assert scratch[-2:] == ["100", "2"]


def test_what_is_out_of_reach_is_said_in_its_row(lines: Any) -> None:
    rows, _ = lines(ASKED)
    assert next(row for row in rows if row[0] == "ours, 10 %")[1] == "0: as small / as that: no"


def test_seeds_bare_rows_and_no_scratch(lines: Any) -> None:
    asked = reproduce.Asked([0.2], [], ["fit"], [1, 2], False, True, 1, [])
    rows, species = lines(asked)
    assert [row[5] for row in rows[1:]] == ["bare 0.2 fit 1", "bare 0.2 fit 2"]
    assert len(species) == 1
    rows, _ = lines(reproduce.Asked([0.2], [], ["fit"], [1], True, False, 1, []))
    assert [row[5] for row in rows[1:]] == ["bare 0.2 fit 1", "tuned 0.2 fit 1 1"]


@pytest.mark.parametrize("text", ["fit,pruning", "Fit"])
def test_methods_that_there_are_not_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give some of"):
        methods_of(text)


def test_methods_come_in_one_order() -> None:
    assert methods_of("fit, condensation") == ("condensation", "fit")


def test_the_dense_network_is_made_only_where_a_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("train_ignition.main", lambda **options: asked.append(options))
    for name in ("full.onnx", "full.npz"):
        (tmp_path / name).touch()
    files = reproduce.ensure(tmp_path, "other.yaml", 3, 0)
    assert [path.name for path in files] == ["full.onnx", "full.npz", "full_labelled.npz"]
    assert [(o["out"].name, o["mechanism"], o["widths"]) for o in asked] == [
        ("full", "other.yaml", "3200,1600,800,400")
    ]
    files[2].touch()
    reproduce.ensure(tmp_path, "other.yaml", 3, 0)
    assert len(asked) == 1


def test_networks_are_followed_to_where_they_get_but_not_beyond_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = RNG.uniform(-1, 1, (10, 2)).astype("f4")
    given[0] = 1.0
    np.savez(tmp_path / "given.npz", state=given, group=np.arange(10))
    steps = 2 * combustion.EVERY
    paths = {"one": np.full((3, steps, 2), 0.5, "f4"), "two": np.full((3, steps, 2), 1.4, "f4")}
    paths["two"][1:, combustion.EVERY :] = 1.6
    monkeypatch.setattr(combustion, "mixtures", lambda *_: None)
    monkeypatch.setattr(combustion, "rolled", lambda network, *_: Rollout(np.zeros(1), paths[network.name]))
    scaling: Any = None
    roller = combustion.Roller(None, scaling, 3, steps, 0)
    out = roller.more(tmp_path / "given.npz", [Path("one"), Path("two")], tmp_path / "more.npz")
    with np.load(out) as found:
        np.testing.assert_allclose(found["state"], [*given, *[[0.5, 0.5]] * 6, *[[1.4, 1.4]] * 4], rtol=1e-6)
        assert found["group"].tolist() == [*range(10), 10, 10, 11, 11, 12, 12, 13, 13, 14, 15]
