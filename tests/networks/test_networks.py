"""Networks by name: what builds, and what is explained when a user's own does not."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from onnxdistill.errors import NetworkError
from onnxdistill.graph.cost import count_macs
from onnxdistill.networks import BUILT_IN, build_network, probe
from onnxdistill.networks.digits_resnet import digits_resnet

NETS = """
import sys
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, num_classes))

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5))

def fails():
    raise ZeroDivisionError("by\\nzero")

def needs(depth):
    return nn.Identity()

def ends():
    return 3
"""


def refusal(name: str, folder: Path) -> str:
    with pytest.raises(NetworkError) as caught:
        build_network(name, 10, 0, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_functions_of_a_file_get_the_number_of_classes_if_they_take_it(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    inputs = torch.ones(2, 1, 2, 2)
    assert build_network("nets.py:make", 7, 0, tmp_path)(inputs).shape == (2, 7)
    assert build_network(f"{tmp_path / 'nets.py'}:fixed", 7, 0)(inputs).shape == (2, 5)


def test_cifar_vgg_by_its_published_size() -> None:
    network = build_network("cifar-vgg16", 10, 0)
    # 14,714,688 parameters of convolutions with biases (Simonyan and Zisserman 2014, table 2, less the hidden layers),
    # two for each of 4,224 channels of batch norm, and 512 * 10 + 10 of the last layer.
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_714_688 + 2 * 4_224 + 5_130
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nets.py:fails", "'nets.py:fails' cannot be built: ZeroDivisionError: by zero."),
        ("nets.py:needs", "cannot be built: TypeError: needs() missing 1 required positional argument: 'depth'"),
        ("nets.py:ends", "returned a int, not a torch.nn.Module"),
        ("nets.py:nothing", "has no function 'nothing'"),
        ("nets.py:", "has no function ''"),
        ("nowhere.py:make", "does not exist"),
        (":make", "module '', which is empty or relative"),
        (".nets:make", "module '.nets', which is empty or relative"),
        ("builtins:dict", "returned a dict"),
        ("no_such_module:make", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("resnet18", "Did you mean 'torchvision:resnet18'"),
        ("torchvision:resnet19", "Did you mean 'resnet18'"),
    ],
)
def test_what_does_not_build_is_explained_in_one_line(tmp_path: Path, name: str, part: str) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    assert part in refusal(name, tmp_path)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("def make(:", "SyntaxError: "),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_files_that_do_not_import_are_explained(tmp_path: Path, code: str, part: str) -> None:
    (tmp_path / "broken_nets.py").write_text(code)
    message = refusal("broken_nets.py:make", tmp_path)
    assert str(tmp_path / "broken_nets.py") in message
    assert part in message
    assert not any(name.startswith("onnxdistill_user_broken_nets") for name in sys.modules)


def test_a_file_is_one_module_until_it_changes(tmp_path: Path) -> None:
    """Networks that are built from one file can be pickled, all of them, and so can those of another of its name."""
    code = "from torch import nn\n\n\nclass Net(nn.Flatten):\n    pass\n"
    folders = tmp_path, tmp_path / "other", tmp_path
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "nets.py").write_text(code)
    networks = [build_network(f"{folder}/nets.py:Net", 7, 0) for folder in folders]
    kinds = [type(pickle.loads(pickle.dumps(network))) for network in networks]
    assert kinds == [type(network) for network in networks]
    assert kinds[0] is kinds[2] is not kinds[1]
    # As a checkout on another machine may have it.
    kept = sys.modules.pop(kinds[0].__module__)
    (tmp_path / "nets.py").write_bytes(code.replace("\n", "\r\n").encode())
    assert type(build_network(f"{tmp_path}/nets.py:Net", 7, 0)).__module__ == kept.__name__
    (tmp_path / "nets.py").write_text(f"{code}\n# another version\n")
    assert type(build_network(f"{tmp_path}/nets.py:Net", 7, 0)) is not kinds[0]


def test_networks_share_nothing_though_their_file_makes_them_once(tmp_path: Path) -> None:
    code = "from torch import nn\nNET = nn.Sequential(nn.Linear(2, 2))\n"
    code += "def whole(): return NET\ndef wrapped(): return nn.Sequential(NET, nn.ReLU())\n"
    (tmp_path / "nets.py").write_text(code)
    networks = [build_network(f"{tmp_path}/nets.py:{name}", 2, 0) for name in ("whole", "whole", "wrapped")]
    tensors = [{id(parameter) for parameter in network.parameters()} for network in networks]
    assert len(set.union(*tensors)) == sum(map(len, tensors)) == 6


def test_a_probe_says_what_the_network_raises() -> None:
    with pytest.raises(NetworkError, match=r"'x' does not run on float32 images \[2 x 3 x 4 x 4\]: RuntimeError: "):
        probe("x", nn.Linear(5, 5), torch.ones(2, 3, 4, 4))


def test_same_seed_same_network_and_no_trace_in_the_global_state() -> None:
    state = torch.random.get_rng_state()
    one, two, other = (build_network("cifar-resnet20", 10, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.linear.weight, two.linear.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(one.linear.weight, other.linear.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [("digits-resnet", 1, 8), ("cifar-resnet20", 3, 32), ("cifar-vgg16", 3, 32), ("cifar-mobilenet_v2", 3, 32)],
)
def test_sizes_are_those_of_the_docstrings(name: str, channels: int, size: int) -> None:
    network = BUILT_IN[name](10)
    documented = (BUILT_IN[name].__doc__ or "").split(": ")[1]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    macs = count_macs(network.eval(), torch.zeros(1, channels, size, size))
    assert documented == f"{parameters / 1e6:.2f} M parameters, {macs / 1e6:.1f} M multiply-adds."


def test_the_digits_network_takes_grey_images() -> None:
    assert digits_resnet(4).eval()(torch.ones(2, 1, 8, 8)).shape == (2, 4)
