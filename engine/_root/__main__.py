"""Run the command line as `python -m gbad_batch`."""

from gbad_batch.engine.commands.cli import main

if __name__ == "__main__":
    main(prog_name="gbad-batch")
