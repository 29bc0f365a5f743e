import pytest

from rljax.training import processes


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([("0x1ae0", "0x0063")], True),  # a TPU v5e
        ([("0x1ae0", "0x0042"), ("0x10de", "0x2330")], False),  # Google's network card, and a GPU
        ([("0x8086", "0x7d1d")], False),  # another accelerator, which has a /dev/accel too
        ([], False),
    ],
)
def test_a_tpu_host_is_known_by_its_cards(cards, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for i, (vendor, device) in enumerate(cards):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "vendor").write_text(vendor + "\n")
        (tmp_path / str(i) / "device").write_text(device + "\n")
    assert processes._on_tpu_host(tmp_path) is expected
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not processes._on_tpu_host(tmp_path)


def test_a_tpu_without_metadata_goes_on_alone(monkeypatch, capsys):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "_on_tpu_host", lambda: True)

    def refuse():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes.jax.distributed, "initialize", refuse)
    processes.join_workers()
    assert "running as a single process" in capsys.readouterr().out


def test_half_of_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match="expected JAX_NUM_PROCESSES to be set too"):
        processes.join_workers()


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_number_of_processes_that_is_not_an_integer_is_named(monkeypatch, variable):
    for name, value in (
        ("JAX_COORDINATOR_ADDRESS", "localhost:1"),
        ("JAX_NUM_PROCESSES", "2"),
        ("JAX_PROCESS_ID", "0"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(variable, "two")
    with pytest.raises(ValueError, match=f"{variable} = 'two': expected an integer"):
        processes.join_workers()
