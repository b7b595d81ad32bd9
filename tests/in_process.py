"""The command in this process: its words and exit code, where signals and streams are not the question."""

from click.testing import CliRunner

from gbad_batch.engine.commands.cli import main


def run_here(*words: object) -> tuple[int, str, str]:
    """Run the command; returns exit code, stdout, stderr. An error that it does not tell itself is raised."""
    ran = CliRunner().invoke(main, [*map(str, words)], prog_name="gbad-batch", catch_exceptions=False)
    return ran.exit_code, ran.stdout, ran.stderr
