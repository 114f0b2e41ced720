"""Slices by name, and what is said of those that are not."""

import pytest

from jaxllm.planning import topologies
from jaxllm.planning.hlo import Collective
from jaxllm.planning.roofline import roofline
from jaxllm.planning.topologies import parse


def test_a_name_is_a_slice():
    slices = parse("v5e:16x16", 2)
    assert slices.num_devices == 512 and str(slices) == "2 x v5e:16x16" and slices.chip.hbm == 63 << 28  # 15.75 GiB: libtpu keeps a quarter
    assert parse("tpu7x:4x4x4").num_devices == 128  # two devices a chip


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
        ("tpu7x:4x4x4", (True, True, True)),
        ("v5e:16x16", (True, True, False)),
        ("v6e:8x16", (False, True, False)),
        ("v6e:8x8", (False, False, False)),
    ],
)
def test_which_dims_are_rings(name, wrap):
    assert parse(name).wrap == wrap


@pytest.mark.parametrize(
    ("name", "slices", "says"),
    [
        ("v5x:4x4", 1, r"Unknown TPU generation 'v5x'.*Choose one of: v4, v5e, v5p, v6e, tpu7x"),
        ("v6:4x4", 1, "Did you mean v6e"),
        ("v5p:4x4", 1, "a v5p slice has 3 dims. Write v5p:4x4x4"),
        ("v6e:8x", 1, "a v6e slice has 2 dims"),
        ("v6e:3x8", 1, "Choose v6e:4x8"),
        ("v5e:16x32", 1, "the largest v5e slice has 256 chips. Take several: --num-slices"),
        ("v6e:8x8", 0, "--num-slices 0 is not a number of slices"),
    ],
)
def test_what_is_no_slice_is_told(name, slices, says):
    with pytest.raises(ValueError, match=says):
        parse(name, slices)


def test_only_replica_crosses_slices():
    with pytest.raises(ValueError, match=r"parallel.replica=1 cannot be laid over 2 slices.*multiple of 2"):
        topologies.make_mesh(parse("v5e:4x4", 2), {"fsdp": -1})


def test_a_missing_compiler_is_one_pip_command(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .jaxllm\[tpu\]"):
        topologies.make_mesh(parse("v5e:4x4"), {"fsdp": -1})


def test_the_longest_of_products_and_links_is_the_step():
    """16 chips; 1 GB gathered over fsdp 100 times: 15/16 of it into 200 GB/s; the replica's sum crosses DCN only with several slices."""
    gather = Collective("all-gather", ("fsdp",), 10**9, 100, 16, "", "")
    crossing = Collective("all-reduce", ("replica",), 10**9, 1, 2, "", "")
    one = roofline(parse("v5e:4x4"), 197e12, 197e12, 197e12 / 4, [gather, crossing])
    assert one.products == pytest.approx(5 / 4) and one.dcn == 0
    assert one.ici == pytest.approx((100 * 15 / 16 + 1) * 1e9 / 200e9)
    assert one.step == max(one.products, one.ici) and one.mfu == pytest.approx(1 / one.step)
    two = roofline(parse("v5e:4x4", 2), 197e12, 197e12, 0.0, [gather, crossing])
    assert two.products == pytest.approx(1) and two.dcn == pytest.approx(1e9 / 3.125e9)  # 25 Gbit/s a chip
    unknown = roofline(parse("v4:4x4x4", 2), 275e12, 275e12, 0.0, [crossing])
    assert unknown.dcn is None and unknown.step == 1


def test_a_sum_over_slices_and_inside_them_crosses_with_a_share():
    """1 GB summed over 2 slices of 16: inside each slice first, then a sixteenth of it by each device between them."""
    both = Collective("all-reduce", ("replica", "fsdp"), 10**9, 1, 32, "", "")
    found = roofline(parse("v5e:4x4", 2), 197e12, 0.0, 0.0, [both])
    assert found.dcn == pytest.approx(1e9 / 16 / 3.125e9) and found.ici == pytest.approx(2 * 15 / 16 * 1e9 / 200e9)


def test_what_is_given_is_read_from_memory():
    """8.19 GB at 819 GB/s; two devices of a chip share its memory's rate."""
    assert roofline(parse("v5e:4x4"), 197e12, 0.0, 0.0, [], 8.19e9).step == pytest.approx(0.01)
    assert roofline(parse("tpu7x:4x4x4"), 1.0, 0.0, 0.0, [], 7.38e9).hbm == pytest.approx(0.002)


def test_two_devices_share_the_links_of_a_chip():
    gather = Collective("all-gather", ("fsdp",), 10**9, 1, 2, "", "")
    assert roofline(parse("tpu7x:4x4x4"), 1.0, 0.0, 0.0, [gather]).ici == pytest.approx(2 * 0.5e9 / 600e9)
