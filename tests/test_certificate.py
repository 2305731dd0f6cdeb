"""The certificate: passed by what is equivariant, refused to all else, and the same after a journey through JSON."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.potential import Potential
from mdrelax.forces.symmetry import certify
from mdrelax.method.certificate import (
    LARGEST_ERROR_FLOAT32,
    LARGEST_ERROR_FLOAT64,
    Certificate,
    CertificateError,
    EquivarianceError,
    require,
)
from mdrelax.method.projection import LayerRecord, project
from mdrelax.method.relaxation import relax_constraints, set_theta
from mdrelax.structures.graph import Edges
from molecules import batch_of, ethanol, rattled, tiny_force_field

SMALL = EquivarianceError(1e-14, 1e-14, 1e-14, 1e-14)


def test_a_projected_network_passes_its_certificate():
    """float64 under 1e-9 and float32 under 1e-4 of what is summed, with the records of its layers inside."""
    model = tiny_force_field()
    where = ["*.attention.source", "*.attention.out", "*.feed_forward", "potential.hidden"]
    relax_constraints(model, where=where, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    records = project(model, how="fold")
    certificate = certify(model, batch_of(*rattled(ethanol(), 3, seed=0)), layers=records, n_operations=2)
    assert require(certificate) is certificate
    assert (certificate.symmetry, certificate.n_structures, certificate.layers) == ("E(3)", 3, records)
    assert certificate.float64.worst(reflections=True) < 1e-11 < certificate.float32.worst(reflections=True) < 1e-4


def test_a_network_with_free_maps_is_not_certified():
    """Not even at theta = 0: what is certified is what is saved."""
    model = tiny_force_field()
    relax_constraints(model)
    set_theta(model, 0.0)
    with pytest.raises(ValueError, match="`project` it before it is certified"):
        certify(model, batch_of(ethanol()))


def test_a_network_of_even_irreps_is_not_asked_for_reflections():
    """SE(3): mirror images get other energies, and the certificate passes."""
    model = tiny_force_field("8x0e+4x1e+4x2e")
    certificate = certify(model, batch_of(*rattled(ethanol(), 2, seed=0)), n_operations=2)
    assert certificate.symmetry == "SE(3)"
    assert certificate.float64.reflection > 1e-3
    assert certificate.passed
    assert not certificate._replace(symmetry="E(3)").passed


class Compass(Potential):
    """Bond energies that depend on the bond's angle to the z axis: not invariant under rotations."""

    cutoff = 5.0
    symmetry = "E(3)"

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Parameter(torch.tensor(1e-3, dtype=torch.float64))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Half of each bond's energy to the target atom, (N,)."""
        energy = (1 - edges.vectors.square().sum(1) / 25) ** 3 + self.field * edges.vectors[:, 2] ** 2
        return energy.new_zeros(len(species)).index_add(0, edges.index[1], energy)


def test_a_network_that_breaks_the_symmetry_is_refused_with_its_numbers():
    """The sentence carries both errors and both limits."""
    certificate = certify(ForceField(Compass(), elements=(1, 6, 8)), batch_of(ethanol()), n_operations=2)
    worst = certificate.float64.worst(reflections=True)
    assert worst > 1e-4
    with pytest.raises(CertificateError, match=rf"not E\(3\)-equivariant.*{worst:.1e} in float64 \(limit 1e-09\)"):
        require(certificate)


@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=EquivarianceError._fields)
@pytest.mark.parametrize(("field", "limit"), [("float64", LARGEST_ERROR_FLOAT64), ("float32", LARGEST_ERROR_FLOAT32)])
def test_each_error_must_stay_under_its_limit(field: str, limit: float, which: int):
    """Just under passes, the limit itself, anything above and NaN do not."""
    for error, passes in ((math.nextafter(limit, 0), True), (limit, False), (1.0, False), (math.nan, False)):
        errors = EquivarianceError(*[error if k == which else 1e-14 for k in range(4)])
        certificate = Certificate("E(3)", SMALL, SMALL, 1, [])._replace(**{field: errors})
        assert certificate.passed == passes


def test_a_certificate_survives_json():
    """to_dict -> JSON -> from_dict is the same certificate, and "passed" is judged anew, not believed."""
    record = LayerRecord("blocks.0", 1.5, 1.25, 1.75, [0.1, 0.2], 0.5, "folded")
    certificate = Certificate("SE(3)", SMALL._replace(reflection=0.4), SMALL, 7, [record])
    data = json.loads(json.dumps(certificate.to_dict()))
    assert Certificate.from_dict(data) == certificate
    assert data["passed"] is True
    data["float64"]["rotation"] = 0.1
    assert not Certificate.from_dict(data).passed


@pytest.mark.parametrize("word", ["\x1b[2J", 600 * "E"])
@pytest.mark.parametrize("place", ["symmetry", "history", "name", "how"])
def test_no_word_of_a_certificate_is_endless_or_a_command_to_the_terminal(place, word):
    """Messages and tables quote them; `\\x1b[2J` clears the screen."""
    record = LayerRecord("blocks.0", 1.5, 1.25, 1.75, [0.1, 0.2], 0.5, "folded")
    data = json.loads(json.dumps(Certificate("SE(3)", SMALL, SMALL, 7, [record], history="pre-trained").to_dict()))
    (data["layers"][0] if place in ("name", "how") else data)[place] = word
    with pytest.raises(ValueError, match="its certificate") as caught:
        Certificate.from_dict(data)
    assert str(caught.value).isprintable()
