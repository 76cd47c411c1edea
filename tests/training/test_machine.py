"""The description of the machine that trains."""

from cram_jax.training import machine


def test_versions_name_hardware_software_and_code():
    versions = machine.versions()
    assert set(versions) == {"device", "cpu", "python", "jax", "flax", "optax", "commit"}
    assert all(versions[name] for name in versions if name != "commit")  # there is none outside a repository
    assert versions["cpu"].endswith(" cores") and " x" in versions["device"]


def test_the_peak_of_memory_never_falls():
    before = machine.peak_memory_mb()
    held = bytearray(64 << 20)
    assert machine.peak_memory_mb() >= before > 50 and held
