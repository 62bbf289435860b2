"""How students scale: the law finds what was put in, refuses too few runs, and is drawn from runs.csv alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from distill_lit.analysis.scaling_law import fit_scaling_law, has_scaling_curve, reason_not_fitted, scaling_data
from distill_lit.cli.main import main

SIZES = {"large": 8e6, "middle": 4e6, "small": 1e6}
BUDGETS = (2e6, 6e6, 18e6)


def true_loss(size: float, tokens: float, teacher: float, supervised: float) -> float:
    """The formula of 2502.08606 written out, with coefficients of our own."""
    c0, c1, d1, f1, a, alpha, b, beta, gamma = 0.5, 1.0, 1.2, 0.5, 1.0, 0.35, 1.0, 0.4, 1.1
    bend = (1 + (teacher / (supervised * d1)) ** (1 / f1)) ** (-c1 * f1)
    mimic = (a / (size / 1e6) ** alpha + b / (tokens / 1e6) ** beta) ** gamma
    return float(teacher + teacher**-c0 * bend * mimic)


def frame_of(teacher: float, noise: float = 0.0) -> pd.DataFrame:
    """runs.csv of one teacher: three sizes × three budgets, with and without it."""
    rng, rows = np.random.default_rng(round(teacher * 100)), []
    for student, size in SIZES.items():
        for tokens in BUDGETS:
            supervised = 1.5 + 1.2 / (size / 1e6) ** 0.3 + 1 / (tokens / 1e6) ** 0.3
            loss = true_loss(size, tokens, teacher, supervised) * np.exp(rng.normal(0, noise))
            for role, value in (("ce_only", supervised), ("distilled", loss)):
                rows.append(
                    {"model": f"{student}-{role}-{tokens:.0f}", "role": role, "student": student,
                     "validation_data_fingerprint": "text", "status": "done", "non_embedding_parameters": size,
                     "training_tokens": tokens, "val_ce": value,
                     "val_teacher_nll": teacher, "grid.training.max_tokens": str(int(tokens))}
                )  # fmt: skip
    return pd.DataFrame(rows)


def all_runs(noise: float = 0.0) -> pd.DataFrame:
    """Runs of three teachers."""
    return pd.concat([scaling_data(frame_of(teacher, noise), f"t{teacher}") for teacher in (2.0, 2.4, 3.0)])


def test_law_predicts_runs_that_it_was_not_fitted_to() -> None:
    runs = all_runs(noise=0.002).reset_index(drop=True)
    seen = runs.sample(18, random_state=0)
    law = fit_scaling_law(seen)
    assert law is not None and law.leave_one_out_error < 0.01
    unseen = runs.drop(seen.index)
    assert np.abs(law.predict(unseen) / unseen["loss"] - 1).max() < 0.02
    # and not because all losses are alike
    assert np.abs(seen["loss"].mean() / unseen["loss"] - 1).max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda runs: runs[runs["experiment"] == "t2.0"], "there are 9 runs of at least 12, 1 teachers of at least 2"),
        (lambda runs: runs[runs["student"] != "small"], "there are 2 sizes of at least 3"),
        (lambda runs: runs.assign(ce_only_loss=np.nan), "without the teacher"),
        (lambda runs: runs.assign(validation_data_fingerprint=runs["experiment"]), "different text"),
    ],
)
def test_law_is_refused(change: object, words: str) -> None:
    runs = change(all_runs())  # type: ignore[operator]
    assert words in reason_not_fitted(runs) and fit_scaling_law(runs) is None


def test_runs_are_means_over_seeds_beside_the_same_without_teacher() -> None:
    frame = frame_of(2.0)
    again = frame.assign(model=frame["model"] + "-1", val_ce=frame["val_ce"] + 0.2)
    runs = scaling_data(pd.concat([frame, again])).set_index(["student", "tokens"])
    expected = frame.set_index(["role", "student", "training_tokens"])["val_ce"]
    own = runs.loc[("middle", 6e6)]
    assert own["loss"] == pytest.approx(expected["distilled", "middle", 6e6] + 0.1)
    assert own["loss_std"] == pytest.approx(np.std([0, 0.2], ddof=1))
    assert own["ce_only_loss"] == pytest.approx(expected["ce_only", "middle", 6e6] + 0.1)
    assert own["num_seeds"] == 2 and has_scaling_curve(runs.reset_index())


def test_teachers_of_one_experiment_are_those_of_several() -> None:
    frames = {name: frame_of(loss).assign(**{"grid.teacher": name}) for name, loss in (("big", 2.0), ("middle", 2.4))}
    together = scaling_data(pd.concat(frames.values(), ignore_index=True), "one")
    apart = pd.concat([scaling_data(frame, f"one, teacher {name}") for name, frame in frames.items()], ignore_index=True)
    pd.testing.assert_frame_equal(together, apart)


def test_one_student_without_teacher_stands_beside_every_teacher() -> None:
    frames = [frame_of(loss).assign(**{"grid.teacher": name}) for name, loss in (("big", 2.0), ("middle", 2.4))]
    joint = pd.concat(frames, ignore_index=True)
    without = (joint["role"] == "ce_only") & (joint["grid.teacher"] == "big")
    joint.loc[without, "grid.teacher"] = None
    shared = joint[(joint["role"] != "ce_only") | without]
    found = scaling_data(shared, "one")
    assert len(found) == 2 * len(scaling_data(frames[0])) and found["ce_only_loss"].notna().all()
    assert set(found["experiment"]) == {"one, teacher big", "one, teacher middle"}


def test_another_axis_is_no_scaling_grid() -> None:
    frame = frame_of(2.0)
    assert scaling_data(frame.assign(**{"grid.training.learning_rate": [str(n % 2) for n in range(len(frame))]})).empty
    assert not has_scaling_curve(scaling_data(frame[frame["training_tokens"] == BUDGETS[0]]))


def test_command_draws_several_teachers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / f"teacher_{teacher}" for teacher in (2.0, 2.4)]
    for folder, teacher in zip(folders, (2.0, 2.4), strict=True):
        folder.mkdir()
        frame_of(teacher, 0.002).to_csv(folder / "runs.csv", index=False)
    with pytest.raises(SystemExit) as end:
        main(["scaling", *map(str, folders), "--out", str(tmp_path / "law"), "--all"])
    assert end.value.code == 0, capsys.readouterr()
    out = tmp_path / "law"
    assert {path.name for path in out.iterdir()} == {"scaling.md", "scaling.csv", "scaling.png", "scaling.pdf"}
    assert "Fitted to 18 runs" in (out / "scaling.md").read_text()
    drawn = pd.read_csv(out / "scaling.csv")
    assert np.abs(drawn["law"] / drawn["loss"] - 1).max() < 0.03
    with pytest.raises(SystemExit) as end:
        main(["scaling", str(tmp_path), "--out", str(tmp_path / "none")])
    assert end.value.code == 2 and not (tmp_path / "none").exists()
    assert "runs.csv" in capsys.readouterr().err
