"""Checkpoints are read safely and matched strictly."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from genval.runtime.errors import GenValError
from genval.segmenters.checkpoints import find_checkpoint, load_strictly, read_state_dict


@pytest.fixture
def linear():
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"state_dict": s, "meta": {}}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_formats(tmp_path, linear, wrap, prefix):
    path = tmp_path / "weights.pth"
    torch.save(wrap({prefix + key: value for key, value in linear.state_dict().items()}), path)
    state = read_state_dict(path)
    assert state.keys() == linear.state_dict().keys()
    load_strictly(linear, state, path, "a test")


def test_half_precision_weights_become_float32(tmp_path, linear):
    state = {k: v.half() if v.is_floating_point() else v for k, v in linear.state_dict().items()}
    load_strictly(linear, state, tmp_path, "a test")
    assert linear[0].weight.dtype == torch.float32
    torch.testing.assert_close(linear[0].weight.data, state["0.weight"].float())


def change(state, kind):
    if kind == "missing":
        del state["0.bias"]
    elif kind == "not in the model":
        state["extra.weight"] = torch.zeros(1)
    elif kind == "of another shape":
        state["0.weight"] = torch.zeros(3, 3)
    elif kind == "not finite":
        state["0.bias"] = torch.tensor([0.0, float("nan"), 0.0])


@pytest.mark.parametrize("kind", ["missing", "not in the model", "of another shape", "not finite"])
def test_one_wrong_key_is_refused_and_listed(tmp_path, linear, kind):
    before = {key: value.clone() for key, value in linear.state_dict().items()}
    state = dict(linear.state_dict())
    change(state, kind)
    with pytest.raises(GenValError, match=f"does not fit a test: 1 {kind}: (0.bias|extra.weight|0.weight)"):
        load_strictly(linear, state, tmp_path / "weights.pth", "a test")
    assert all(torch.equal(before[key], value) for key, value in linear.state_dict().items())


def test_many_wrong_keys_are_counted(tmp_path, linear):
    with pytest.raises(GenValError, match=r"20 not in the model: .* and 12 more"):
        state = linear.state_dict() | {f"extra{i:02d}": torch.zeros(1) for i in range(20)}
        load_strictly(linear, state, tmp_path, "a test")


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64, "sparse", "meta"])
def test_weights_of_another_kind_of_number_are_refused(tmp_path, linear, kind):
    state = linear.state_dict()
    weight = state["0.weight"]
    state["0.weight"] = weight.to_sparse() if kind == "sparse" else weight.to(kind)
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(GenValError, match=r"1 of another kind of number: 0\.weight"):
        load_strictly(linear, read_state_dict(path), path, "the model")


def test_double_precision_weights_become_float32(tmp_path, linear):
    state = {k: v.double() if v.is_floating_point() else v for k, v in linear.state_dict().items()}
    load_strictly(linear, state, tmp_path, "the model")
    assert linear[0].weight.dtype == torch.float32
    torch.testing.assert_close(linear[0].weight.data, state["0.weight"].float())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_files(tmp_path, linear, share):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": linear.state_dict()}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(GenValError, match=r"weights.pth (is damaged|cannot be read)"):
        read_state_dict(path)


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(GenValError, match="There is no checkpoint"):
        read_state_dict(path)
    path.write_bytes(b"<html>404 Not Found</html>")
    with pytest.raises(GenValError, match=r"weights.pth"):
        read_state_dict(path)
    for content in ({}, {"meta": {"epoch": 1}}, [torch.zeros(1)], {"state_dict": {"epoch": 3}}):
        torch.save(content, path)
        with pytest.raises(GenValError, match="holds no weights"):
            read_state_dict(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Fraction(1, 2)}, path)
    with pytest.raises(GenValError, match=r"cannot be read safely: .*fractions.Fraction"):
        read_state_dict(path)


def test_getattr_in_a_checkpoint_reaches_nothing(tmp_path):
    """mmengine's files name `getattr`: it is let through by name only, as a function that does nothing."""

    class Method:
        def __reduce__(self):
            return getattr, ("text", "upper")

        def __call__(self):
            """Only so that it can be pickled as a function."""

    class Call:
        def __reduce__(self):
            return Method(), ()

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "method": Method()}, path)
    assert read_state_dict(path).keys() == {"a"}
    torch.save({"state_dict": {"a": torch.zeros(1)}, "called": Call()}, path)
    with pytest.raises(GenValError, match="cannot be read safely"):
        read_state_dict(path)


def test_the_training_state_of_mmengine_is_passed_over(tmp_path):
    from genval.segmenters.openmmlab import import_mmseg

    import_mmseg()
    from mmengine.logging import MessageHub

    hub = MessageHub("segmenter_test")
    hub.update_scalar("train/loss", 0.3)
    meta = {"lr": np.float64(0.1), "iter": np.int64(3), "flag": np.bool_(True), "history": np.arange(3)}
    path = tmp_path / "iter_80000.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "message_hub": hub.state_dict(), "meta": meta}, path)
    assert torch.equal(read_state_dict(path)["a"], torch.ones(2))


def test_find_checkpoint(tmp_path):
    (tmp_path / "link" / "Net").mkdir(parents=True)
    deeper = tmp_path / "link" / "Net" / "a.pth"
    deeper.touch()
    assert find_checkpoint("Net/a.pth", tmp_path) == deeper
    assert find_checkpoint(deeper, "elsewhere") == deeper
    assert find_checkpoint("Net/b.pth", tmp_path) is None
