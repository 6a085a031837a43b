import torch

from genval.artifacts.fingerprint import weights_hash


def test_the_hash_follows_names_types_and_values_and_nothing_else():
    module = torch.nn.Linear(3, 2)
    twin = torch.nn.Linear(3, 2)
    assert weights_hash(module) != weights_hash(twin)
    twin.load_state_dict(module.state_dict())
    twin.weight.data = twin.weight.data.t().contiguous().t()  # the same values, laid out otherwise
    assert weights_hash(module) == weights_hash(twin) and len(weights_hash(module)) == 16
    assert weights_hash(module.to(torch.bfloat16)) != weights_hash(twin)
    assert weights_hash(torch.nn.Sequential(twin)) != weights_hash(twin)
