"""Files that are loaded — checkpoints and weights — damaged, of something else, or made to do harm."""

import io
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import effnet
from effnet.checkpoint import read_checkpoint
from effnet.cli.app import app
from effnet.errors import OptionError
from effnet.options import TrainingOptions
from effnet.training import train
from effnet.weights.archive import check_archive
from effnet.weights.files import read_state_dict

SMALL: dict[str, Any] = {"batch_size": 8, "limit_batches": 1, "progress": False}


class Harm:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def harmful(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds, and something that writes ``folder / "harmed"``."""
    harm = Harm(folder / "harmed")
    content = dict.fromkeys(("hyper_parameters", "state_dict", "loops", "callbacks"), harm)
    return {"epoch": 0, "optimizer_states": [], "lr_schedulers": [], **content}


def write_harmful(path: Path, form: str) -> Path:
    content = harmful(path.parent)
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif form == "two pickles":
        path.write_bytes(pickle.dumps({"weight": 1}, protocol=2) + pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    return path


@pytest.mark.parametrize("form", ["archive", "legacy file", "plain pickle", "two pickles"])
@pytest.mark.parametrize("forced", [False, True])
def test_nothing_in_a_file_is_executed(
    form: str, forced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where PyTorch is told to load everything by default."""
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("COLUMNS", "300")
    path = write_harmful(tmp_path / "harmful.ckpt", form)
    picture = tmp_path / "picture.png"
    resumed = CliRunner().invoke(app, ["train", "--resume", str(path), "--output-dir", str(tmp_path / "run")])
    predicted = CliRunner().invoke(app, ["predict", str(picture), "--weights", str(path), "--model", "efficientnet_b0"])
    for result, option in ((resumed, "--resume"), (predicted, "--weights")):
        assert result.exit_code == 2, result.output
        assert option in result.output and "harmful.ckpt" in result.output
        assert "Traceback" not in result.output
    model = effnet.create_model("efficientnet_b0", num_classes=2)
    with pytest.raises(ValueError, match=r"harmful\.ckpt"):
        effnet.load_weights(model, path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["harmful.ckpt"]


def test_the_harm_would_be_done(tmp_path: Path) -> None:
    """Without which the test above would show nothing."""
    torch.load(write_harmful(tmp_path / "harmful.ckpt", "archive"), weights_only=False)
    assert (tmp_path / "harmed").exists()


def checkpoint(values: int = 300) -> dict[str, Any]:
    """The form of a checkpoint, small."""
    return {
        "epoch": 1,
        "hyper_parameters": {"model": "efficientnet_b0"},
        "state_dict": {"weight": torch.arange(values, dtype=torch.float32)},
        "optimizer_states": [{}],
        "lr_schedulers": [],
        "loops": {},
        "callbacks": {},
    }


def saved(path: Path) -> bytes:
    torch.save(checkpoint(), path)
    return path.read_bytes()


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def plain(content: dict[str, Any]) -> dict[str, Any]:
        return {**content, "state_dict": {name: t.tolist() for name, t in content["state_dict"].items()}}

    return repr(plain(one)) == repr(plain(other))


def test_files_cut_short_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    whole = saved(path)
    assert equal(read_checkpoint(path), checkpoint())
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(OptionError, match=r"resume: expected a checkpoint .* got .*cut\.ckpt"):
            read_checkpoint(path)
        with pytest.raises(ValueError, match=r"cut\.ckpt"):
            read_state_dict(path)


def test_flipped_bits_are_refused_or_mean_nothing(tmp_path: Path) -> None:
    """In a checksum's reach they are refused, the tensors' values above all; elsewhere nothing comes of them."""
    path = tmp_path / "flipped.ckpt"
    whole = saved(path)
    dice = random.Random(0)
    refused = 0
    values = whole.index(checkpoint()["state_dict"]["weight"].numpy().tobytes())
    places = [dice.randrange(len(whole)) for _ in range(250)] + [values + dice.randrange(1200) for _ in range(30)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        try:
            content = read_checkpoint(path)
        except OptionError:
            refused += 1
            continue
        assert not values <= place < values + 1200
        assert equal(content, checkpoint())
    assert refused > len(places) // 2


def test_bombs_and_garbage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    torch.save(checkpoint(values=1_000_000), path)
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, bytes(len(content)) if name.endswith("data/0") else content)
    assert path.stat().st_size < 40_000
    with pytest.raises(OptionError, match=r"compressed, which torch\.save does not do"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="compressed"):
        read_state_dict(path)

    claim = bytearray(saved(path))
    entry = claim.rindex(b"PK\x01\x02")
    claim[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(claim)
    with pytest.raises(ValueError, match="more content than the file is long"):
        check_archive(path)

    dice = random.Random(0)
    for garbage in (b"", b"\x80", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), dice.randbytes(5000), b"(" * 100_000):
        path.write_bytes(garbage)
        with pytest.raises(OptionError, match="resume: expected a checkpoint"):
            read_checkpoint(path)
        with pytest.raises(ValueError, match="bomb"):
            read_state_dict(path)


@pytest.mark.parametrize("content", [[], torch.zeros(3), {}, {"epoch": 1}, 7, {**checkpoint(), "epoch": "1"},
                                     {**checkpoint(), "state_dict": []}])  # fmt: skip
def test_other_content_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(OptionError, match="resume: expected a checkpoint"):
        read_checkpoint(tmp_path / "other.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of one epoch."""
    torch.set_num_threads(1)
    return train(TrainingOptions(output_dir=tmp_path_factory.mktemp("run"), epochs=1, **SMALL)).checkpoint.read_bytes()


WEIGHT = "model.stem.conv.weight"
CHANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["hyper_parameters"].pop("model"), "does not say its model"),
    (lambda c: c["state_dict"].pop(WEIGHT), f"{WEIGHT} is only in the network"),
    (lambda c: c["state_dict"].update(more=torch.zeros(1)), "more is only in it"),
    (lambda c: c["state_dict"].update({WEIGHT: torch.zeros(3)}), rf"{WEIGHT} is torch.float32 \(3,\)"),
    (lambda c: c["state_dict"].update({WEIGHT: c["state_dict"][WEIGHT].double()}), f"{WEIGHT} is torch.float64"),
    (lambda c: c["state_dict"].update({WEIGHT: None}), f"{WEIGHT} is NoneType"),
    (lambda c: c["current_model_state"].pop(WEIGHT), f"{WEIGHT} is only in the network"),
    (lambda c: c["optimizer_states"].clear(), "the optimiser's state is not of the network's parameters"),
    (lambda c: c["optimizer_states"][0]["state"].pop(0), "the optimiser's state is not of the network's parameters"),
    (lambda c: c["optimizer_states"][0]["state"][3].pop("exp_avg"), "expected exp_avg, .* for parameter 3"),
    (lambda c: c["optimizer_states"][0]["state"][3].update(exp_avg=torch.zeros(2, 2)), r"exp_avg of parameter 3 is \("),
    (lambda c: c["optimizer_states"][0].pop("param_groups"), "param_groups"),
    (lambda c: c["lr_schedulers"].clear(), "the learning rate's schedule is missing"),
    (lambda c: c["loops"].pop("fit_loop"), "resume: expected a checkpoint"),
    (lambda c: c["callbacks"].update(History={}), "the history is not of 1 epochs"),
    (lambda c: c["callbacks"].update(History={"epochs": [{"epoch": 1}]}), "resume: expected a checkpoint"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_what_does_not_fit_the_run_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, run: bytes, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    content = torch.load(io.BytesIO(run), weights_only=True)
    change(content)
    path = tmp_path / "changed.ckpt"
    torch.save(content, path)
    with pytest.raises(OptionError, match=rf"^resume: .*changed\.ckpt.*{message}|^{message}"):
        train(TrainingOptions(output_dir=tmp_path / "run", epochs=2, resume=str(path), **SMALL))
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_checkpoint_of_other_classes_is_refused(run: bytes, tmp_path: Path) -> None:
    content = torch.load(io.BytesIO(run), weights_only=True)
    for part in ("state_dict", "current_model_state"):
        content[part]["model.classifier.bias"] = nn.Parameter(torch.zeros(5)).data
    torch.save(content, tmp_path / "classes.ckpt")
    with pytest.raises(OptionError, match=r"model.classifier.bias is torch.float32 \(5,\)"):
        train(TrainingOptions(output_dir=tmp_path, epochs=2, resume=str(tmp_path / "classes.ckpt"), **SMALL))
