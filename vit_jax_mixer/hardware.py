"""Facts of accelerators."""

import jax

# Peak FLOP a second in bfloat16 with float32 sums, dense, by the beginning of JAX's device kind.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flop() -> float:
    """Return the peak of all devices of the run together, in FLOP a second; 0 where it is not known."""
    kinds = [device.device_kind for device in jax.devices()]
    peaks = [next((peak for name, peak in _PEAKS.items() if kind.startswith(name)), 0.0) for kind in kinds]
    return sum(peaks) if all(peaks) else 0.0
