"""Names of files that model directories, run directories and imported checkpoints share."""

SPEC_FILE = "spec.yaml"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
LOCK_FILE = "lock.json"
RUN_FILES = frozenset({LOCK_FILE, "checkpoints"})
"""Names by which a directory is known to be that of a run."""
REPORT_FILE = "import-report.json"
