"""Peaks by device_kind, MFU by hand, what a person sees."""

import io

import pytest

from jaxllm.training.progress import ProgressSink, compact, duration
from jaxllm.training.throughput import PEAKS, mfu, peak_flops


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
    ],
)
def test_published_peaks(kind, teraflops):
    assert peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize("kind", ["cpu", "TPU v99", "TPU v50", "NVIDIA L400", "NVIDIA GeForce RTX 4090", ""])
def test_an_unknown_device_has_no_peak_and_no_mfu(kind):
    assert peak_flops(kind) is None and mfu(1e6, 1e9, kind, 8) == {}


def test_mfu_by_hand():
    # 7B parameters, 6 FLOPs each a token, 64 chips at 459 TFLOP/s: 300k tokens a second are 42.9 %.
    assert mfu(300_000, 6 * 7e9, "TPU v5", 64)["mfu"] == pytest.approx(300_000 * 42e9 / (64 * 459e12))


def test_every_row_is_its_own():
    assert all(peak_flops(name) == peak for name, peak in PEAKS.items())


def test_plain_lines_when_it_is_no_terminal():
    now, out = [0.0], io.StringIO()
    sink = ProgressSink(100, out, every_seconds=5.0, clock=lambda: now[0])
    for step in range(1, 101):
        now[0] += 1.0
        sink.write(
            {"step": step, "loss": 3.0, "tokens_per_second": 12345.0, "mfu": 0.4321, "step_seconds": 1.0, "skipped": float(step == 3)}
        )
    sink.write({"step": 100, "name": "heldout", "loss": 2.5})
    sink.close()
    text = out.getvalue().splitlines()
    assert text[0] == "step 1/100  loss 3.0000  12.3k tok/s  mfu 43.2%  eta 0:01:39"
    assert "step 3: 1 update(s) skipped" in text[1] and len(text) == 1 + 1 + 19 + 1 + 1
    assert text[-2].startswith("step 100/100") and text[-1] == "step 100  eval heldout  loss 2.5"


def test_nothing_is_foretold_from_the_step_that_compiled():
    out = io.StringIO()
    ProgressSink(100, out).write({"step": 1, "loss": 3.0})
    assert out.getvalue() == "step 1/100  loss 3.0000\n"


def test_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    sink = ProgressSink(10, out)
    sink.rewind(4)
    sink.write({"step": 5, "loss": None})
    sink.write({"step": 10, "loss": 1.25, "tokens_per_second": 2e6})
    sink.close()
    assert "10/10" in out.getvalue() and "loss 1.2500" in out.getvalue() and "2M tok/s" in out.getvalue()


def test_short_forms():
    assert [compact(x) for x in (999, 1234, 2.5e9)] == ["999", "1.23k", "2.5G"] and duration(3725) == "1:02:05"
