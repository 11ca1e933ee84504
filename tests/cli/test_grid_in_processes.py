"""A grid is divided over the processes of torchrun, and nobody can tell from the files."""

from __future__ import annotations

from pathlib import Path

from two_processes import run_in_two_processes

from soundomni.cli.main import main


def test_a_grid_in_two_processes_writes_what_one_process_writes(tmp_path: Path) -> None:
    """The same files with the same bytes, in a folder that has files already."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("prompt: [two clicks, white noise, a rising chirp]\nseconds: [0.3, 0.5]\nseed: [1, 2]\nsteps: 2\n")
    command = ["generate", "--model", "nano", "--grid", str(grid), "--batch", "2", "--no-pictures", "--out"]
    program = tmp_path / "program.py"
    program.write_text("import sys\nfrom soundomni.cli.main import main\nsys.exit(main(sys.argv[1:]))\n")
    alone, together = tmp_path / "alone", tmp_path / "together"
    for out in (alone, together):
        assert main(["generate", "--model", "nano", "--prompt", "two clicks", "--steps", "1", "--no-pictures", "--out", str(out)]) == 0
    assert main([*command, str(alone)]) == 0
    run_in_two_processes(program, *command, str(together))
    names = sorted(path.name for path in alone.iterdir())
    assert len(names) == 14 and names == sorted(path.name for path in together.iterdir())
    assert all((alone / name).read_bytes() == (together / name).read_bytes() for name in names)
