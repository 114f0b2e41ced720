"""Sizes either make a mesh of exactly the devices there are, or are refused with what would."""

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxllm.parallel.mesh import AXES, LATER, make_mesh, resolve_sizes


def test_everything_goes_to_fsdp_by_default():
    mesh = make_mesh()
    assert dict(mesh.shape) == {axis: 8 if axis == "fsdp" else 1 for axis in AXES}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_devices_can_be_chosen():
    chosen = jax.devices()[4:8]
    mesh = make_mesh({"tensor": 2, "fsdp": -1}, chosen)
    assert list(mesh.devices.flatten()) == chosen and mesh.shape["fsdp"] == 2 and mesh.axis_names == AXES


@given(
    replica=st.integers(1, 4),
    fsdp=st.integers(1, 4),
    tensor=st.integers(1, 4),
    wild=st.sampled_from(["replica", "fsdp", "context", "tensor"]),
)
@settings(max_examples=50, deadline=None)
def test_minus_one_takes_what_is_left(replica, fsdp, tensor, wild):
    whole = {"replica": replica, "fsdp": fsdp, "tensor": tensor}
    devices = replica * fsdp * tensor
    full = resolve_sizes(whole | {wild: -1}, devices)
    assert full == {axis: whole.get(axis, 1) for axis in AXES}


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"data": 2}, "Unknown mesh axis 'data'. Choose from: replica, fsdp"),
        ({"fsdp": 0}, "parallel.fsdp=0 is not a size"),
        ({"fsdp": -2}, "parallel.fsdp=-2 is not a size"),
        ({"fsdp": -1, "tensor": -1}, "parallel.fsdp and parallel.tensor are both -1"),
        ({"fsdp": 3}, r"fsdp=3 does not fit 8 devices.*\[1, 2, 4, 8\]"),
        ({"fsdp": -1, "tensor": 3}, "does not fit 8 devices"),
        ({}, "does not fit 8 devices"),
        *[({axis: 2, "fsdp": -1}, f"parallel.{axis}=2 is not supported yet") for axis in LATER],
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(sizes, words):
    with pytest.raises(ValueError, match=words):
        resolve_sizes(sizes, 8)
