"""The networks by name: their shapes, initial weights, and files."""

import pytest
import torch
from torch import nn

from fastjac import checkpoint, models


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("classes", [10, 7])
def test_every_network_gives_logits(name, classes):
    network = models.create(name, classes=classes)
    x = torch.rand(2, *network.input_shape)
    assert network(x).shape == (2, classes)
    assert network.name == name and network.options == {"classes": classes}


def layers(network, kind):
    return [layer for layer in network if isinstance(layer, kind)]


def test_mnist_is_the_network_of_the_paper():
    torch.manual_seed(0)
    network = models.create("mnist")
    first, second = layers(network, nn.Conv2d)
    assert first.weight.shape == (32, 1, 5, 5) and second.weight.shape == (64, 32, 5, 5)
    assert [layer.weight.shape for layer in layers(network, nn.Linear)] == [
        (1024, 3136),
        (10, 1024),
    ]
    assert layers(network, nn.Dropout)[0].p == 0.5
    for layer in (*layers(network, nn.Conv2d), *layers(network, nn.Linear)):
        assert (layer.bias == 0.1).all()
        assert layer.weight.abs().max() <= 0.2
    # A normal of deviation 0.1 cut at two deviations has deviation 0.088.
    deviation = layers(network, nn.Linear)[0].weight.detach().std().item()
    assert deviation == pytest.approx(0.088, rel=0.01)


def test_mnist_with_the_weights_that_torch_makes():
    torch.manual_seed(0)
    network = models.create("mnist", init="torch")
    torch.manual_seed(0)
    first = nn.Conv2d(1, 32, 5, padding=2)
    assert torch.equal(layers(network, nn.Conv2d)[0].weight, first.weight)
    assert torch.equal(layers(network, nn.Conv2d)[0].bias, first.bias)
    assert layers(network, nn.Linear)[0].weight.abs().max() <= 3136**-0.5
    with pytest.raises(ValueError, match="init .*'he'"):
        models.create("mnist", init="he")


def test_cifar_is_four_sets_of_two_convolutions():
    network = models.create("cifar")
    channels = [layer.out_channels for layer in layers(network, nn.Conv2d)]
    assert channels == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [layer.p for layer in layers(network, nn.Dropout)] == [0.25] * 4
    assert len(layers(network, nn.MaxPool2d)) == 4
    assert len(layers(network, nn.Linear)) == 2
    small = models.create("cifar", widths=(8, 16), hidden=32)
    assert small(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_lenet5_pools_by_averages():
    network = models.create("lenet5")
    assert len(layers(network, nn.AvgPool2d)) == 2
    assert sum(p.numel() for p in network.parameters()) == 61_706


def test_file_gives_back_name_options_weights_and_notes(tmp_path):
    network = models.create("cifar", widths=(4, 8), hidden=16, dropout=0.1)
    models.save(tmp_path / "net.pt", network, {"epochs": 2})
    loaded, notes = models.load(tmp_path / "net.pt")
    assert notes == {"epochs": 2} and not loaded.training
    assert loaded.name == "cifar" and loaded.options == network.options
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), network.eval()(x))


def test_unknown_names_and_options_are_told():
    with pytest.raises(ValueError, match=r"name \(='mnits'\).*use one of mnist, cifar"):
        models.create("mnits")
    with pytest.raises(ValueError, match="'digits' has no option 'width'; it has"):
        models.create("digits", width=3)
    with pytest.raises(ValueError, match=r"widths \(=.*must name 1 to 5 sets"):
        models.create("cifar", widths=(1,) * 6)


def test_only_networks_made_by_name_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"network \(a Linear\) was not made by"):
        models.save(tmp_path / "net.pt", nn.Linear(2, 2))


def test_file_of_a_network_unknown_here(tmp_path):
    payload = {"name": "vgg", "options": {}, "state": {}, "notes": {}}
    checkpoint.save(tmp_path / "net.pt", "model", payload)
    with pytest.raises(checkpoint.CheckpointError, match="does not hold a network"):
        models.load(tmp_path / "net.pt")
